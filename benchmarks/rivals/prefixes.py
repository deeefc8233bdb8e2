"""Plain removal: of growing sets of blocks the smallest whose removal is fast enough."""

import json
from collections.abc import Sequence
from pathlib import Path

from scipy.optimize import isotonic_regression

from rivals.ground import SLACK, Ground, share_of
from rivals.made import Made, Unreached
from rivals.norms import with_better_norms
from shoal.files.writing import write_text
from shoal.plan import Plan, Remove
from shoal.surgery import input_specs, remove_blocks, signature_of

_CURVE_SECONDS = 2.0
_NEAR_SECONDS = 4.0
_NEIGHBOURS = 2

Removal = Sequence[str]


def shortest_prefix(ground: Ground, order: Removal, target: float, folder: Path) -> Made:
    """The network without the first few blocks of `order`, as few as meet `target`."""
    removals = [order[: count + 1] for count in range(len(order))]
    return without(ground, removals[fewest(ground, removals, target, folder)])


def fewest(ground: Ground, removals: Sequence[Removal], target: float, folder: Path) -> int:
    """The index of the first removal that meets `target`; each takes out more than the one before it.

    All of them are timed interleaved in one run, once for all targets, and those around the target once more and
    longer: a disturbance in the first run must not cost the rival a block.
    """
    shares = _curve(ground, removals, folder / "curve.json")
    guess = next((index for index, share in enumerate(shares) if share <= target * SLACK), None)
    if guess is None:
        raise Unreached(shares[-1] if shares else 1.0, f"all {len(removals)} removals of the order are not enough")
    near = range(max(0, guess - _NEIGHBOURS), min(len(removals) - 1, guess + _NEIGHBOURS) + 1)
    measured = _shares(ground, [removals[index] for index in near], _NEAR_SECONDS)
    return next((index for index, share in zip(near, measured, strict=True) if share <= target * SLACK), near[-1])


def without(ground: Ground, removed: Removal, **done: object) -> Made:
    """The original without these blocks, batch norms recalibrated if that helps; `done` goes into the results."""
    cut = remove_blocks(ground.model, ground.timed.take(2), list(removed)).eval()
    network, norms = with_better_norms(ground, cut)
    plan = Plan(
        model=None,
        inputs=input_specs(ground.timed.take(2)),
        network=signature_of(ground.graph.model, ground.graph.chain),
        actions=[Remove(path=path) for path in removed],
    )
    return Made(network, {"removed": list(removed), **done, "batch_norms": norms}, plan)


def _curve(ground: Ground, removals: Sequence[Removal], path: Path) -> list[float]:
    """The share of the original's latency behind each removal, from the file if it is there.

    Removing one more block never makes a network slower, so what was measured is brought to the nearest falling curve.
    """
    order = [list(removal) for removal in removals]
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["removals"] == order:
            return kept["shares"]
    measured = _shares(ground, removals, _CURVE_SECONDS)
    shares = isotonic_regression(measured, increasing=False).x.tolist()
    write_text(path, json.dumps({"removals": order, "measured": measured, "shares": shares}, indent=1) + "\n")
    return shares


def _shares(ground: Ground, removals: Sequence[Removal], seconds: float) -> list[float]:
    """The measured share behind each removal, timed interleaved in one run."""
    ground.progress(f"timing {len(removals)} networks", 0, 1)
    example = ground.timed.take(2)
    networks = {
        str(index): remove_blocks(ground.model, example, list(removal)) for index, removal in enumerate(removals)
    }
    times = ground.times(networks, seconds)
    return [share_of(times[name]) for name in networks]
