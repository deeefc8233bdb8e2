"""Shoal's own plan: keep, remove or replace, under a latency budget."""

from rivals.ground import Ground
from rivals.made import Made, Unreached
from shoal.errors import NotReachedError
from shoal.pipeline import Settings, compress


def planned(ground: Ground, target: float) -> Made:
    """`shoal.compress(latency=target)`; the tables are made once and shared by all targets.

    Its evaluation is kept short, on calibration images: what it says about quality is not used here.
    """
    images = sum(batch.size for batch in ground.calibration)
    try:
        result = compress(
            ground.model,
            ground.calibration,
            eval=ground.calibration[:1],
            latency=target,
            settings=Settings(images=images, channels_last=ground.channels_last, latency_seconds=0.1),
            tables=ground.folder / "tables",
            progress=ground.progress,
        )
    except NotReachedError as error:
        raise Unreached(None, error.message) from error
    record = result.record
    done = {"removed": record.removed, "replaced": record.replaced, "notes": [record.message, *record.notes]}
    return Made(result.model, done, result.plan)
