"""The four numbers a reader looks for first."""

from dataclasses import dataclass

from shoal.record import Record
from shoal.report import numbers, speed


@dataclass(frozen=True)
class Figure:
    """A name, a big number, and what it was before."""

    name: str
    value: str
    detail: str


def figures(record: Record) -> list[Figure]:
    """Blocks, quality, speed and work, as far as they were measured."""
    found = [_blocks(record), _quality(record), _speed(record), _macs(record)]
    return [one for one in found if one is not None]


def _blocks(record: Record) -> Figure:
    before, after = record.original.blocks, record.compressed.blocks
    units = len(record.removed_units)
    more = f", {units} unit{'' if units == 1 else 's'} more" if units else ""
    return Figure("Blocks", f"{after} of {before}", f"{len(record.removed)} removed{more}")


def _quality(record: Record) -> Figure | None:
    before, after = record.original.quality.top1, record.compressed.quality.top1
    seen = record.comparison
    if numbers.known(before) and numbers.known(after):
        detail = f"{numbers.points(seen.top1_drop)}, was {numbers.percent(before)}"
        return Figure(f"Top-1, {seen.split}", numbers.percent(after), detail)
    was, now = record.original.quality.perplexity, record.compressed.quality.perplexity
    if was is not None and now is not None and numbers.known(was) and numbers.known(now):
        detail = f"{numbers.less(was, now)}, was {numbers.significant(was)}"
        return Figure(f"Perplexity, {seen.split}", numbers.significant(now), detail)
    if numbers.known(seen.agreement):
        return Figure(f"Agreement, {seen.split}", numbers.percent(seen.agreement), "same answer as the original")
    return None


def _speed(record: Record) -> Figure | None:
    timed = [pair for pair in speed.pairs(record) if pair.speedup is not None]
    if not timed:
        return None
    pair = timed[-1]
    value = f"{numbers.ratio(pair.speedup or 1.0)} ×"
    if pair.within_noise:
        return Figure(f"Speed, batch {pair.batch}", value, "no difference beyond noise")
    times = [numbers.milliseconds(one.median_ms) for one in (pair.compressed, pair.original) if one]
    return Figure(f"Speed, batch {pair.batch}", value, f"{times[0]}, was {times[1]}")


def _macs(record: Record) -> Figure:
    before, after = record.original.cost.macs, record.compressed.cost.macs
    return Figure("MACs", numbers.amount(after), f"{numbers.less(before, after)}, was {numbers.amount(before)}")
