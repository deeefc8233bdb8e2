"""Removal in a given order: the shortest beginning of it that is fast enough."""

import json
from collections.abc import Sequence
from pathlib import Path

from scipy.optimize import isotonic_regression

from rivals.ground import SLACK, Ground
from rivals.made import Made, Unreached
from rivals.norms import with_better_norms
from shoal.files.writing import write_text
from shoal.plan import Plan, Remove
from shoal.surgery import input_specs, remove_blocks, signature_of

_CURVE_SECONDS = 2.0
_NEAR_SECONDS = 4.0
_NEIGHBOURS = 2


def shortest_prefix(ground: Ground, order: Sequence[str], target: float, folder: Path) -> Made:
    """The network without the first so many blocks of `order`, as few as meet `target`.

    All beginnings of the order are timed in turns in one run, once for all targets, and those around the target once
    more and longer: a disturbance in the first run must not cost the rival a block.
    """
    shares = _curve(ground, order, folder / "curve.json")
    guess = next((number for number, share in enumerate(shares, 1) if share <= target * SLACK), None)
    if guess is None:
        raise Unreached(shares[-1] if shares else 1.0, f"all {len(order)} blocks of the order removed are not enough")
    near = range(max(1, guess - _NEIGHBOURS), min(len(order), guess + _NEIGHBOURS) + 1)
    found = _shares(ground, order, near, _NEAR_SECONDS)
    count = next((number for number, share in found.items() if share <= target * SLACK), near[-1])
    removed = list(order[:count])
    cut = remove_blocks(ground.model, ground.timed.take(2), removed).eval()
    network, norms = with_better_norms(ground, cut)
    plan = Plan(
        model=None,
        inputs=input_specs(ground.timed.take(2)),
        network=signature_of(ground.anatomy.model, ground.anatomy.chain),
        actions=[Remove(path=path) for path in removed],
    )
    return Made(network, {"removed": removed, "batch_norms": norms}, plan)


def _curve(ground: Ground, order: Sequence[str], path: Path) -> list[float]:
    """The share of the original's latency behind each removal, from the file if it stands there.

    Removing one more block never makes a network slower, so what was measured is brought to the nearest falling curve.
    """
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["order"] == list(order):
            return kept["shares"]
    measured = list(_shares(ground, order, range(1, len(order) + 1), _CURVE_SECONDS).values())
    shares = isotonic_regression(measured, increasing=False).x.tolist()
    write_text(path, json.dumps({"order": list(order), "measured": measured, "shares": shares}, indent=1) + "\n")
    return shares


def _shares(ground: Ground, order: Sequence[str], counts: range, seconds: float) -> dict[int, float]:
    """The measured shares with so many blocks of the order removed, timed in turns in one run."""
    ground.progress(f"timing {len(counts)} networks in turns", 0, 1)
    example = ground.timed.take(2)
    networks = {str(count): remove_blocks(ground.model, example, order[:count]) for count in counts}
    times = ground.times(networks, seconds)
    return {count: times[str(count)].median_ms / times["original"].median_ms for count in counts}
