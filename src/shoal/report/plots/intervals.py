"""Differences with their intervals, row by row along one axis with the equivalence margin as a band.

The rows are HTML, so that names can be found and wrap, and the axis stays in view while they scroll; places on the axis
are per cent of its width.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from shoal.record import Ablation, ScannedBlock, ScannedLayer, ScanRecord, Verdict
from shoal.report import numbers, scan_metrics
from shoal.report.plots.figure import linear_ticks

# A group of more rows than this is split: a page of paper holds no more.
_MAX_ROWS = 40
_OUTSIDE = "Outside the blocks"
_FAR = 12.0
Item = ScannedBlock | ScannedLayer


@dataclass(frozen=True)
class Axis:
    """From differences to per cent of the width; linear, or beyond the margin logarithmic to both sides."""

    low: float
    high: float
    margin: float
    linear: bool

    def at(self, value: float) -> float:
        """The place of a value; what lies outside is put at the nearer end."""
        place = (self._bend(value) - self._bend(self.low)) / (self._bend(self.high) - self._bend(self.low))
        return round(100 * min(1.0, max(0.0, place)), 2)

    def _bend(self, value: float) -> float:
        return value if self.linear or math.isinf(value) else math.asinh(value / self.margin)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Round numbers with their places."""
        if self.linear:
            values = linear_ticks(self.low, self.high, 4)
        else:
            largest = max(-self.low, self.high)
            powers = range(math.floor(math.log10(2 * self.margin)), math.floor(math.log10(largest)) + 1)
            digits = (1, 3) if len(powers) <= 3 else (1,)
            sizes = [float(f"{digit}e{power}") for power in powers for digit in digits]
            sizes = [self.margin, *(size for size in sizes if size >= 2 * self.margin)]
            values = sorted({0.0, *sizes, *(-size for size in sizes)})
        return [(self.at(value), numbers.tick(value)) for value in values if self.low <= value <= self.high]


@dataclass(frozen=True)
class IntervalLane:
    """One difference of a row, with the places of its ends and its centre."""

    name: str
    verdict: Verdict
    title: str
    low: float
    centre: float
    high: float
    open_low: bool
    open_high: bool


@dataclass(frozen=True)
class IntervalRow:
    """A block or layer with its differences; `marked` puts a diamond before its name."""

    name: str
    lanes: Sequence[IntervalLane]
    marked: bool


@dataclass(frozen=True)
class IntervalGroup:
    """Rows under one heading, with their text alternative."""

    title: str
    desc: str
    rows: Sequence[IntervalRow]


@dataclass(frozen=True)
class IntervalPlot:
    """Everything that the template needs; `band` are the places of the margin, `names` the width of the names."""

    ident: str
    name: str
    unit: str
    axis: Axis
    band: tuple[float, float]
    names: int
    named_lanes: bool
    groups: Sequence[IntervalGroup]


def block_plot(record: ScanRecord) -> IntervalPlot | None:
    """Every block with its ablations, a group for each stage; None without blocks."""
    groups = groupby(record.blocks, key=lambda block: f"Stage {block.stage}")
    return _plot(groups, record, "blocks-plot", "Blocks removed, one at a time")


def layer_plot(record: ScanRecord) -> IntervalPlot | None:
    """Every layer in the order of the forward pass, a group for each run of layers in a stage or outside all blocks."""
    stages = {block.path: f"Stage {block.stage}" for block in record.blocks}
    outside = _OUTSIDE if stages else "Layers"
    groups = groupby(record.layers, key=lambda layer: stages.get(layer.block or "", outside))
    return _plot(groups, record, "layers-plot", "Kernels zeroed, one at a time")


def _plot(
    groups: Iterator[tuple[str, Iterator[Item]]], record: ScanRecord, ident: str, name: str
) -> IntervalPlot | None:
    parts = [part for title, items in groups for part in _split(title, list(items))]
    items = [item for _, members in parts for item in members]
    if not items:
        return None
    axis = axis_for(items, record)
    lanes = {name for item in items for name, _, _ in _changes(item, record)}
    unit = "points of top-1" if record.metric == "top1" else scan_metrics.MEASURES[record.metric].unit
    return IntervalPlot(
        ident,
        name,
        f"worse, {unit}",
        axis,
        (axis.at(-axis.margin), axis.at(axis.margin)),
        max(len(item.path) for item in items),
        len(lanes) > 1,
        [
            IntervalGroup(title, describe(members, record), [_row(item, record, axis) for item in members])
            for title, members in parts
        ],
    )


def _split(title: str, items: Sequence[Item]) -> Iterator[tuple[str, Sequence[Item]]]:
    for start in range(0, len(items), _MAX_ROWS):
        part = items[start : start + _MAX_ROWS]
        yield title if len(items) <= _MAX_ROWS else f"{title}, {start + 1} to {start + len(part)}", part


def _changes(item: Item, record: ScanRecord) -> Iterator[tuple[str, Ablation, scan_metrics.Change]]:
    for name, ablation in scan_metrics.distinct(item).items():
        change = scan_metrics.change(ablation, record.metric)
        if change is not None:
            yield name, ablation, change


def axis_for(items: Sequence[Item], record: ScanRecord) -> Axis:
    """The axis that holds every finite end, and keeps the margin readable however large the largest difference is."""
    margin = scan_metrics.margin(record)
    changes = [change for item in items for _, _, change in _changes(item, record)]
    ends = [end for change in changes for end in (change.low, change.value, change.high) if math.isfinite(end)]
    low, high = min([-1.6 * margin, *ends]), max([1.6 * margin, *ends])
    if margin == 0 or max(-low, high) <= _FAR * margin:
        space = 0.05 * (high - low) or 1.0
        return Axis(low - space, high + space, margin, linear=True)
    return Axis(1.15 * low, 1.15 * high, margin, linear=False)


def _row(item: Item, record: ScanRecord, axis: Axis) -> IntervalRow:
    lanes = [
        IntervalLane(
            name.replace(":", " "),
            ablation.verdict,
            _title(f"{item.path}, {name}", ablation, change, scan_metrics.MEASURES[record.metric].unit),
            axis.at(change.low),
            axis.at(change.value),
            axis.at(change.high),
            math.isinf(change.low),
            math.isinf(change.high),
        )
        for name, ablation, change in _changes(item, record)
    ]
    return IntervalRow(item.path, lanes, isinstance(item, ScannedLayer) and item.changes_channels)


def _title(name: str, ablation: Ablation, change: scan_metrics.Change, unit: str) -> str:
    ends = numbers.significant_interval((change.low, change.high), digits=3)
    interval = "unbounded interval" if ends == numbers.MISSING else ends
    value = numbers.significant(change.value)
    return f"{name}: {ablation.verdict}\n{value} {unit} ({interval}), n = {numbers.count(ablation.n)}"


def describe(items: Sequence[Item], record: ScanRecord) -> str:
    """The text alternative of a group of rows."""
    measure, counts = scan_metrics.MEASURES[record.metric], scan_metrics.counts(items)
    tally = ", ".join(f"{counts[verdict]} {verdict}" for verdict in scan_metrics.VERDICTS if counts[verdict])
    changes = [
        (change.value, item.path)
        for item in items
        if (ablation := scan_metrics.main(item)) and (change := scan_metrics.change(ablation, record.metric))
    ]
    if not changes:
        return f"{len(items)} rows, none of them measured."
    value, path = max(changes)
    largest = f"{measure.name}: at most {numbers.significant(value)} {measure.unit}, at {path}"
    return f"{len(items)} rows: {tally}. {largest}. The table below has every number."
