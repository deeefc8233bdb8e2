"""How a scan is read: which ablation speaks for a block, and which figure the verdict is about."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shoal.record import Ablation, Interval, ScannedBlock, ScannedLayer, ScanRecord, Verdict
from shoal.report import numbers

VERDICTS: tuple[Verdict, ...] = ("non-trivial", "undecided", "trivial")


@dataclass(frozen=True)
class Measure:
    """What verdicts are about: its name, unit, and how many units a fraction or a nat has."""

    name: str
    unit: str
    scale: float


MEASURES = {
    "top1": Measure("Top-1 lost", "points", 100.0),
    "loss": Measure("Loss increase", "nats", 1.0),
    "kl": Measure("Divergence", "nats", 1.0),
}


@dataclass(frozen=True)
class Change:
    """A difference and its interval in the unit of the measure, positive = worse; ends may be infinite."""

    value: float
    low: float
    high: float


def change(ablation: Ablation, metric: str) -> Change | None:
    """The difference the verdict is about; None where it is not a number."""
    value, interval = _raw(ablation, metric)
    if value is None or not math.isfinite(value):
        return None
    low, high = (math.inf * sign if math.isnan(end) else end for end, sign in zip(interval, (-1, 1), strict=True))
    scale = MEASURES[metric].scale
    return Change(scale * value, scale * low, scale * high)


def _raw(ablation: Ablation, metric: str) -> tuple[float | None, Interval]:
    if metric == "top1":
        return ablation.top1_drop, ablation.top1_drop_interval or (-math.inf, math.inf)
    return ablation.loss_increase, ablation.loss_increase_interval


def amount(ablation: Ablation, metric: str) -> tuple[str, str]:
    """The difference the verdict is about and its interval, as text."""
    if metric == "top1":
        return numbers.lost(ablation.top1_drop), numbers.lost_interval(ablation.top1_drop_interval)
    return (
        numbers.significant(ablation.loss_increase),
        numbers.significant_interval(ablation.loss_increase_interval),
    )


def tolerance(record: ScanRecord) -> float:
    """The tolerance in the unit of the measure."""
    return MEASURES[record.metric].scale * record.tolerance


def main(item: ScannedBlock | ScannedLayer) -> Ablation | None:
    """The ablation that speaks for a block (taken out) or a layer (its kernel zero); None where it has none."""
    found = item.ablations
    for name in ("block", "branch", "kernel"):
        if name in found:
            return found[name]
    return next(iter(found.values()), None)


def distinct(item: ScannedBlock | ScannedLayer) -> dict[str, Ablation]:
    """Every ablation by name; `branch` only where it is not the same run as `block`."""
    found = dict(item.ablations)
    if "block" in found and found.get("branch") == found["block"]:
        del found["branch"]
    return found


def verdict(item: ScannedBlock | ScannedLayer) -> Verdict | None:
    """What is said of a block or layer; None where it was not measured."""
    one = main(item)
    return None if one is None else one.verdict


def counts(items: Iterable[ScannedBlock | ScannedLayer]) -> dict[Verdict | None, int]:
    """How many have each verdict; under None those not measured."""
    found: dict[Verdict | None, int] = dict.fromkeys((*VERDICTS, None), 0)
    for item in items:
        found[verdict(item)] += 1
    return found


def ranked(blocks: Sequence[ScannedBlock]) -> list[ScannedBlock]:
    """The blocks that were measured, most important first: by the divergence without them, then by the loss."""
    worth = {block.path: one for block in blocks if (one := main(block)) and math.isfinite(one.kl)}
    measured = [block for block in blocks if block.path in worth]
    return sorted(measured, key=lambda block: (-worth[block.path].kl, -_finite(worth[block.path].loss_increase)))


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
