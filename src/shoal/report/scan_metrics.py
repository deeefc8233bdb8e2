"""Reads the figures of a scan: which ablation represents a block, and which measure the verdict is about."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shoal.record import Ablation, Interval, ScannedBlock, ScannedLayer, ScanRecord, Verdict
from shoal.report import numbers

VERDICTS: tuple[Verdict, ...] = ("non-trivial", "undecided", "trivial")
# One letter for each verdict, for a terminal.
LETTERS: dict[Verdict | None, str] = {"non-trivial": "■", "undecided": "?", "trivial": "·", None: "–"}


@dataclass(frozen=True)
class Measure:
    """What verdicts are about: its name, its unit, and the factor from a fraction or a nat to that unit."""

    name: str
    unit: str
    scale: float


MEASURES = {
    "top1": Measure("Top-1 lost", "points", 100.0),
    "loss": Measure("Loss increase", "nats", 1.0),
    "kl": Measure("Divergence", "nats", 1.0),
    "mse": Measure("Squared error", "of the output's variance", 1.0),
    "damage": Measure("Damage", "mean over the outputs", 1.0),
}
# Where the damage is what verdicts are about: it stands in for the loss, and once is enough.
ALONE = frozenset({"kl", "mse", "damage"})


@dataclass(frozen=True)
class Change:
    """A difference and its interval in the unit of the measure, positive = worse; the ends may be infinite."""

    value: float
    low: float
    high: float


def change(ablation: Ablation, metric: str) -> Change | None:
    """The difference that the verdict is about; None if it is not a number."""
    value, interval = _difference(ablation, metric)
    if value is None or not math.isfinite(value):
        return None
    low, high = (math.inf * sign if math.isnan(end) else end for end, sign in zip(interval, (-1, 1), strict=True))
    scale = MEASURES[metric].scale
    return Change(scale * value, scale * low, scale * high)


def _difference(ablation: Ablation, metric: str) -> tuple[float | None, Interval]:
    if metric == "top1":
        return ablation.top1_drop, ablation.top1_drop_interval or (-math.inf, math.inf)
    return ablation.loss_increase, ablation.loss_increase_interval


def amount(ablation: Ablation, metric: str) -> tuple[str, str]:
    """The difference that the verdict is about and its interval, as text."""
    if metric == "top1":
        return numbers.lost(ablation.top1_drop), numbers.lost_interval(ablation.top1_drop_interval)
    return (
        numbers.significant(ablation.loss_increase),
        numbers.significant_interval(ablation.loss_increase_interval),
    )


def margin(record: ScanRecord) -> float:
    """The equivalence margin in the unit of the measure."""
    return MEASURES[record.metric].scale * record.tolerance


def main(item: ScannedBlock | ScannedLayer) -> Ablation | None:
    """The ablation that represents a block (removed) or a layer (its kernel zeroed); None if it has none."""
    for name in ("block", "branch", "kernel"):
        if name in item.ablations:
            return item.ablations[name]
    return next(iter(item.ablations.values()), None)


def distinct(item: ScannedBlock | ScannedLayer) -> dict[str, Ablation]:
    """Every ablation by name; `branch` only if it is not the same run as `block`."""
    ablations = dict(item.ablations)
    if "block" in ablations and ablations.get("branch") == ablations["block"]:
        del ablations["branch"]
    return ablations


def verdict(item: ScannedBlock | ScannedLayer) -> Verdict | None:
    """The verdict on a block or layer; None if it was not measured."""
    ablation = main(item)
    return None if ablation is None else ablation.verdict


def counts(items: Iterable[ScannedBlock | ScannedLayer]) -> dict[Verdict | None, int]:
    """How many have each verdict; under None those not measured."""
    totals: dict[Verdict | None, int] = dict.fromkeys((*VERDICTS, None), 0)
    for item in items:
        totals[verdict(item)] += 1
    return totals


def ranked(blocks: Sequence[ScannedBlock]) -> list[ScannedBlock]:
    """The measured blocks, most important first: by the divergence without them, then by the loss."""
    ablations = {block.path: ablation for block in blocks if (ablation := main(block)) and math.isfinite(ablation.kl)}

    def key(block: ScannedBlock) -> tuple[float, float]:
        loss = ablations[block.path].loss_increase
        return -ablations[block.path].kl, -loss if math.isfinite(loss) else 0.0

    return sorted((block for block in blocks if block.path in ablations), key=key)
