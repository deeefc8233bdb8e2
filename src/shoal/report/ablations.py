"""The ablations of a scan, row by row, for the plot of differences with intervals."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from shoal.record import ScannedBlock, ScannedLayer, ScanRecord
from shoal.report import numbers, readings, scales
from shoal.report.forest import Canvas, Group, Lane, Row, tooltip

# A picture longer than this is cut in two: a page of paper holds no more.
_LONGEST = 40
_OUTSIDE = "Outside the blocks"


def blocks(record: ScanRecord) -> list[Group]:
    """Every block with its ablations, a group for each stage."""
    groups: list[Group] = []
    for number, members in groupby(record.blocks, key=lambda block: block.stage):
        groups += _cut(f"Stage {number}", list(members), record)
    return groups


def layers(record: ScanRecord) -> list[Group]:
    """Every layer in the order of the run, a group for each stretch within a stage or outside all."""
    stages = {block.path: f"Stage {block.stage}" for block in record.blocks}
    outside = _OUTSIDE if stages else "Layers"
    groups: list[Group] = []
    for title, members in groupby(record.layers, key=lambda layer: stages.get(layer.block or "", outside)):
        groups += _cut(title, list(members), record)
    return groups


def _cut(title: str, members: Sequence[ScannedBlock | ScannedLayer], record: ScanRecord) -> Iterator[Group]:
    for start in range(0, len(members), _LONGEST):
        part = members[start : start + _LONGEST]
        name = title if len(members) <= _LONGEST else f"{title}, {start + 1} to {start + len(part)}"
        yield Group(name, [_row(item, record) for item in part], describe(part, record))


def _row(item: ScannedBlock | ScannedLayer, record: ScanRecord) -> Row:
    unit = readings.MEASURES[record.metric].unit
    lanes = []
    for name, ablation in readings.distinct(item).items():
        change = readings.change(ablation, record.metric)
        if change is not None:
            text = tooltip(f"{item.path}, {name}", change, unit, ablation.verdict, ablation.n)
            lanes.append(Lane(name.replace(":", " "), change, ablation.verdict, text))
    return Row(item.path, lanes, isinstance(item, ScannedLayer) and item.changes_channels)


def describe(items: Sequence[ScannedBlock | ScannedLayer], record: ScanRecord) -> str:
    """What a group of rows shows, in words."""
    measure = readings.MEASURES[record.metric]
    found = readings.counts(items)
    said = ", ".join(f"{found[word]} {word}" for word in readings.VERDICTS if found[word])
    changes = [(one, item.path) for item in items for one in _main_changes(item, record)]
    if not changes:
        return f"{len(items)} rows, none of them measured."
    most, path = max(changes)
    largest = f"{measure.name}: at most {numbers.significant(most)} {measure.unit}, at {path}"
    return f"{len(items)} rows: {said}. {largest}. The table below has every number."


def _main_changes(item: ScannedBlock | ScannedLayer, record: ScanRecord) -> list[float]:
    one = readings.main(item)
    change = None if one is None else readings.change(one, record.metric)
    return [] if change is None else [change.value]


def canvas(groups: Sequence[Group], record: ScanRecord, width: float) -> Canvas:
    """The drawing that all groups of one plot share."""
    lanes = [lane for group in groups for row in group.rows for lane in row.lanes]
    ends = [end for lane in lanes for end in (lane.change.low, lane.change.value, lane.change.high)]
    measure, tolerance = readings.MEASURES[record.metric], readings.tolerance(record)
    several = len({lane.name for lane in lanes}) > 1
    unit = f"worse, {measure.unit}" if record.metric != "top1" else "worse, points of top-1"
    longest = max((len(row.name) for group in groups for row in group.rows), default=0)
    return Canvas(width, scales.for_differences(ends, tolerance), tolerance, unit, several, longest)


def squeezed(groups: Sequence[Group], record: ScanRecord) -> bool:
    """Whether the axis is not a plain one, so that the page has to say so."""
    return isinstance(canvas(groups, record, 1.0).scale, scales.Squeezed)
