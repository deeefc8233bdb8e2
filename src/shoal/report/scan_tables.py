"""The tables of a scan: blocks, every ablation of every block, layers, and what differs on a second data set."""

import math
from collections.abc import Iterator, Sequence

from shoal.record import Ablation, ScannedBlock, ScannedLayer, ScanRecord
from shoal.report import numbers, readings
from shoal.report.sortable import Column, Entry, Line, Table

_HINT = "name, stage, trivial …"


def blocks(record: ScanRecord) -> Table | None:
    """A row for each block, with the ablation that speaks for it; None without blocks."""
    if not record.blocks:
        return None
    columns = [
        *_columns("Block", record),
        Column("Params", number=True),
        Column("Shape out", number=True),
        Column("Stage", number=True),
        Column("Kind"),
        Column("Shortcut"),
    ]
    caption = f"The {len(record.blocks)} residual blocks, each taken out alone"
    lines = [Line(one.path, _block(one, record)) for one in record.blocks]
    return Table("blocks-table", caption, "Filter blocks", _HINT, columns, lines)


def scores(record: ScanRecord) -> Table | None:
    """A row for each block with every score beside the damage it is to foretell; None without scores."""
    names = score_names(record)
    if not names:
        return None
    columns = [Column("Block"), Column("Verdict"), Column("KL, nats", number=True)]
    columns += [Column(name.replace("_", " "), number=True) for name in names]
    lines = [Line(block.path, _scores(block, names)) for block in record.blocks]
    return Table("scores-table", "Every score of every block", "Filter scores", _HINT, columns, lines)


def _scores(block: ScannedBlock, names: Sequence[str]) -> list[Entry]:
    one = readings.main(block)
    kl = None if one is None else one.kl
    verdict = readings.verdict(block)
    return [
        Entry(verdict, chip=verdict) if verdict else Entry("not measured", chip="unmeasured"),
        *(Entry(numbers.significant(value), sort=_finite(value)) for value in (kl, *map(block.scores.get, names))),
    ]


def score_names(record: ScanRecord) -> list[str]:
    """Every score some block has, those whose quality is known first."""
    known = [score.name for score in record.scores]
    return list(dict.fromkeys([*known, *(name for block in record.blocks for name in block.scores)]))


def _block(block: ScannedBlock, record: ScanRecord) -> list[Entry]:
    stays = "" if block.removable else f"must stay: {block.reason}" if block.reason else "must stay"
    return [
        *_figures(readings.main(block), record, stays),
        Entry(numbers.amount(block.params), sort=block.params),
        Entry(_shapes(block), sort=block.out_shape[0] if block.out_shape else None),
        Entry(str(block.stage), sort=block.stage),
        Entry(block.kind),
        Entry(block.shortcut),
    ]


def _shapes(block: ScannedBlock) -> str:
    after = numbers.shape(block.out_shape)
    return after if block.in_shape == block.out_shape else f"{numbers.shape(block.in_shape)} → {after}"


def ablations(record: ScanRecord) -> Table | None:
    """A row for each ablation of each block; None where no block has more than one."""
    found = [(block, readings.distinct(block)) for block in record.blocks]
    if all(len(own) < 2 for _, own in found):
        return None
    first, *rest = _columns("Block", record)
    lines = [
        Line(block.path, [Entry(name), *_figures(one, record)]) for block, own in found for name, one in own.items()
    ]
    caption = f"The {len(lines)} ablations of the blocks"
    return Table(
        "ablations-table", caption, "Filter ablations", "name, mean …", [first, Column("Ablation"), *rest], lines
    )


def layers(record: ScanRecord) -> Table | None:
    """A row for each layer; None where none was tried."""
    if not record.layers:
        return None
    columns = [
        *_columns("Layer", record),
        Column("Channels", number=True),
        Column("Changes them"),
        Column("Params", number=True),
        Column("Kind"),
        Column("Block"),
    ]
    caption = f"The {len(record.layers)} layers, each with its kernel set to zero"
    lines = [Line(one.path, _layer(one, record)) for one in record.layers]
    return Table("layers-table", caption, "Filter layers", _HINT, columns, lines)


def _layer(layer: ScannedLayer, record: ScanRecord) -> list[Entry]:
    return [
        *_figures(readings.main(layer), record),
        Entry(f"{numbers.count(layer.in_channels)} → {numbers.count(layer.out_channels)}", sort=layer.out_channels),
        Entry("changes" if layer.changes_channels else "same"),
        Entry(numbers.amount(layer.params), sort=layer.params),
        Entry(layer.kind),
        Entry(layer.block, code=True) if layer.block else Entry(numbers.MISSING),
    ]


def _columns(first: str, record: ScanRecord) -> list[Column]:
    measure = readings.MEASURES[record.metric]
    differences = {
        "top1": [f"{measure.name}, {measure.unit}", "Loss increase, nats", "KL, nats"],
        "loss": ["Loss increase, nats", "KL, nats"],
        # Without labels the divergence stands in for the loss, and once is enough.
        "kl": ["Divergence, nats"],
    }[record.metric]
    figures = [Column(name, number=True) for name in (*differences, "Changed", "n")]
    return [Column(first), Column("Verdict"), Column("Family-wise"), *figures]


def _figures(one: Ablation | None, record: ScanRecord, note: str = "") -> list[Entry]:
    if one is None:
        empty = [Entry(numbers.MISSING) for _ in _columns("", record)[3:]]
        return [Entry("not measured", note, chip="unmeasured"), Entry(numbers.MISSING), *empty]
    return [
        Entry(one.verdict, note, chip=one.verdict),
        Entry(one.familywise, chip=one.familywise),
        *([_drop(one)] if record.metric == "top1" else []),
        _loss(one),
        *([] if record.metric == "kl" else [Entry(numbers.significant(one.kl), sort=_finite(one.kl))]),
        Entry(numbers.percent(one.changed), sort=_finite(one.changed)),
        Entry(numbers.count(one.n), sort=one.n),
    ]


def _drop(one: Ablation) -> Entry:
    detail = "" if one.top1_drop_interval is None else numbers.lost_interval(one.top1_drop_interval)
    return Entry(numbers.lost(one.top1_drop), detail, sort=_finite(one.top1_drop))


def _loss(one: Ablation) -> Entry:
    interval = numbers.significant_interval(one.loss_increase_interval)
    detail = "no finite interval" if interval == numbers.MISSING else interval
    return Entry(numbers.significant(one.loss_increase), detail, sort=_finite(one.loss_increase))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def parted(record: ScanRecord) -> list[tuple[str, str, Ablation, Ablation]]:
    """(path, ablation, here, there) of every ablation whose verdicts on the two data sets differ."""
    if record.also is None:
        return []
    pairs = [*_pairs(record.blocks, record.also.blocks), *_pairs(record.layers, record.also.layers)]
    return [(path, name, here, there) for path, name, here, there in pairs if here.verdict != there.verdict]


def _pairs(
    here: Sequence[ScannedBlock | ScannedLayer], there: Sequence[ScannedBlock | ScannedLayer]
) -> Iterator[tuple[str, str, Ablation, Ablation]]:
    others = {item.path: item.ablations for item in there}
    for item in here:
        for name, one in readings.distinct(item).items():
            if name in others.get(item.path, {}):
                yield item.path, name, one, others[item.path][name]


def data_names(record: ScanRecord) -> list[str]:
    """What the two data sets are called, told apart even where they have one name."""
    names = [record.data, record.also.data if record.also else ""]
    return names if names[0] != names[1] else ["the first data", "the second data"]


def second(record: ScanRecord) -> Table | None:
    """Both verdicts side by side wherever they differ; None where they never do."""
    rows = parted(record)
    if record.also is None or not rows:
        return None
    measure = readings.MEASURES[record.metric]
    names = data_names(record)
    columns = [Column("Block or layer"), Column("Ablation"), *(Column(f"On {name}") for name in names)]
    columns += [Column(f"{measure.name} on {name}, {measure.unit}", number=True) for name in names]
    lines = [
        Line(
            path,
            [
                Entry(name),
                *(Entry(one.verdict, chip=one.verdict) for one in (here, there)),
                *(_amount(one, record) for one in (here, there)),
            ],
        )
        for path, name, here, there in rows
    ]
    caption = f"The {len(lines)} ablations whose verdicts differ"
    return Table("second-table", caption, "Filter differences", _HINT, columns, lines)


def _amount(one: Ablation, record: ScanRecord) -> Entry:
    # A second data set may have no labels where the first has them.
    return _drop(one) if record.metric == "top1" else _loss(one)
