"""The tables of a training run: lost blocks, and other runs beside it."""

from shoal.record import Quality
from shoal.report import numbers
from shoal.report.sortable import Column, Entry, Line, Table
from shoal.training import Beside, LostBlock, TrainRecord


def lost(record: TrainRecord) -> Table | None:
    """Every lost block, or None where there is none."""
    if not record.lost:
        return None
    return Table(
        ident="lost-table",
        caption="The lost blocks",
        columns=[
            Column("Block"),
            Column("Stage", number=True),
            Column("After epoch", number=True),
            Column("Largest response", number=True),
            Column("Weight left", number=True),
            Column("Opens on test", number=True),
        ],
        lines=[Line(one.path, _entries(one), "removed") for one in record.lost],
        filter="Find a block",
        hint="Sort by a column",
    )


def _entries(one: LostBlock) -> list[Entry]:
    left = one.weight_left / one.weight_before if one.weight_before else 0.0
    return [
        Entry(str(one.stage), sort=one.stage),
        Entry(str(one.epoch), sort=one.epoch),
        Entry(
            numbers.significant(one.largest), f"{numbers.significant(one.largest_on_test)} on test", sort=one.largest
        ),
        Entry(numbers.significant(one.weight_left), f"{numbers.percent(left)} of what it began with", sort=left),
        Entry(numbers.percent(one.opens_on_test), "of test mini-batches", sort=one.opens_on_test),
    ]


def beside(record: TrainRecord) -> Table | None:
    """This run and those it is held against, by epsilon; None where there is no other."""
    if not record.beside:
        return None
    epsilon = float(record.settings["epsilon"])
    own = [
        Entry(numbers.significant(epsilon), sort=epsilon),
        Entry("yes" if record.settings["side"] else "no"),
        Entry(f"{len(record.lost)} of {len(record.blocks)}", sort=len(record.lost)),
        _top1(record.settled.plain.quality),
        Entry(""),
    ]
    others = sorted(record.beside, key=lambda one: one.epsilon)
    return Table(
        ident="beside-table",
        caption="Runs of the same epochs",
        columns=[
            Column("Run"),
            Column("Epsilon", number=True),
            Column("Side supervision"),
            Column("Blocks lost", number=True),
            Column("Top-1, test", number=True),
            Column("This run against it", number=True),
        ],
        lines=[Line("this run", own), *(Line(one.name, _beside(one, len(record.blocks))) for one in others)],
        filter="Find a run",
        hint="Sort by a column",
    )


def _beside(one: Beside, blocks: int) -> list[Entry]:
    drop = one.comparison.top1_drop
    return [
        Entry(numbers.significant(one.epsilon), sort=one.epsilon),
        Entry("yes" if one.side else "no"),
        Entry(f"{one.lost} of {blocks}", sort=one.lost),
        _top1(one.quality),
        Entry(numbers.points(drop), numbers.points_interval(one.comparison.top1_drop_interval), sort=drop),
    ]


def _top1(quality: Quality) -> Entry:
    return Entry(numbers.percent(quality.top1), numbers.percent_interval(quality.top1_interval), sort=quality.top1)
