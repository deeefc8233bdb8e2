"""The tables of a scan: blocks, ablations, layers, scores, and verdicts that differ between two data sets."""

import math
from collections.abc import Iterator, Sequence

from shoal.record import Ablation, BlockRecord, ScannedBlock, ScannedLayer, ScanRecord
from shoal.report import numbers, scan_metrics
from shoal.report.chain import why_fixed
from shoal.report.damage import damage_of
from shoal.report.html import Column, Table, TableCell, TableRow

_HINT = "name, stage, trivial …"


def blocks(record: ScanRecord) -> Table | None:
    """A row for each block, with the ablation that represents it; None without blocks."""
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
    caption = f"The {len(record.blocks)} residual blocks, each removed alone"
    lines = [TableRow(block.path, _block(block, record)) for block in record.blocks]
    return Table("blocks-table", caption, "Filter blocks", _HINT, columns, lines)


def scores(record: ScanRecord) -> Table | None:
    """A row for each block with every score next to the damage it should predict; None without scores."""
    names = score_names(record)
    if not names:
        return None
    columns = [Column("Block"), Column("Verdict"), Column(damage_of(record.outputs).heading, number=True)]
    columns += [Column(name.replace("_", " "), number=True) for name in names]
    lines = [TableRow(block.path, _scores(block, names)) for block in record.blocks]
    return Table("scores-table", "Every score of every block", "Filter scores", _HINT, columns, lines)


def _scores(block: ScannedBlock, names: Sequence[str]) -> list[TableCell]:
    ablation = scan_metrics.main(block)
    kl = None if ablation is None else ablation.kl
    verdict = scan_metrics.verdict(block)
    return [
        TableCell(verdict, chip=verdict) if verdict else TableCell("not measured", chip="unmeasured"),
        *(TableCell(numbers.significant(value), sort=_finite(value)) for value in (kl, *map(block.scores.get, names))),
    ]


def score_names(record: ScanRecord) -> list[str]:
    """Every score that any block has, those with a known correlation first."""
    rated = [score.name for score in record.scores]
    return list(dict.fromkeys([*rated, *(name for block in record.blocks for name in block.scores)]))


def _block(block: ScannedBlock, record: ScanRecord) -> list[TableCell]:
    return [
        *_figures(scan_metrics.main(block), record, why_fixed(block)),
        TableCell(numbers.amount(block.params), sort=block.params),
        TableCell(shape_change(block), sort=block.out_shape[0] if block.out_shape else None),
        TableCell(str(block.stage), sort=block.stage),
        TableCell(block.kind),
        TableCell(block.shortcut),
    ]


def shape_change(block: ScannedBlock | BlockRecord) -> str:
    """The output shape, after the input shape where that differs."""
    after = numbers.shape(block.out_shape)
    return after if block.in_shape == block.out_shape else f"{numbers.shape(block.in_shape)} → {after}"


def ablations(record: ScanRecord) -> Table | None:
    """A row for each ablation of each block; None where no block has more than one."""
    by_block = [(block, scan_metrics.distinct(block)) for block in record.blocks]
    if all(len(ablations) < 2 for _, ablations in by_block):
        return None
    first, *rest = _columns("Block", record)
    lines = [
        TableRow(block.path, [TableCell(name), *_figures(ablation, record)])
        for block, ablations in by_block
        for name, ablation in ablations.items()
    ]
    caption = f"The {len(lines)} ablations of the blocks"
    return Table(
        "ablations-table", caption, "Filter ablations", "name, mean …", [first, Column("Ablation"), *rest], lines
    )


def layers(record: ScanRecord) -> Table | None:
    """A row for each layer; None without layers."""
    if not record.layers:
        return None
    columns = [
        *_columns("Layer", record),
        Column("Channels", number=True),
        Column("Changes channels"),
        Column("Params", number=True),
        Column("Kind"),
        Column("Block"),
    ]
    caption = f"The {len(record.layers)} layers, each with its kernel zeroed"
    lines = [TableRow(layer.path, _layer(layer, record)) for layer in record.layers]
    return Table("layers-table", caption, "Filter layers", _HINT, columns, lines)


def _layer(layer: ScannedLayer, record: ScanRecord) -> list[TableCell]:
    return [
        *_figures(scan_metrics.main(layer), record),
        TableCell(f"{numbers.count(layer.in_channels)} → {numbers.count(layer.out_channels)}", sort=layer.out_channels),
        TableCell("changes" if layer.changes_channels else "same"),
        TableCell(numbers.amount(layer.params), sort=layer.params),
        TableCell(layer.kind),
        TableCell(layer.block, code=True) if layer.block else TableCell(numbers.MISSING),
    ]


def _columns(first: str, record: ScanRecord) -> list[Column]:
    measure = scan_metrics.MEASURES[record.metric]
    differences = {
        "top1": [f"{measure.name}, {measure.unit}", "Loss increase, nats", "KL, nats"],
        "loss": ["Loss increase, nats", "KL, nats"],
        # Without labels the divergence serves as the loss, so one column is enough.
        "kl": ["Divergence, nats"],
    }.get(record.metric, [f"{measure.name}, {measure.unit}"])
    figures = [Column(name, number=True) for name in (*differences, "Changed", "n")]
    return [Column(first), Column("Verdict"), Column("Family-wise"), *figures]


def _figures(ablation: Ablation | None, record: ScanRecord, note: str = "") -> list[TableCell]:
    if ablation is None:
        empty = [TableCell(numbers.MISSING) for _ in _columns("", record)[3:]]
        return [TableCell("not measured", note, chip="unmeasured"), TableCell(numbers.MISSING), *empty]
    kl = TableCell(numbers.significant(ablation.kl), sort=_finite(ablation.kl))
    return [
        TableCell(ablation.verdict, note, chip=ablation.verdict),
        TableCell(ablation.familywise, chip=ablation.familywise),
        *([_drop(ablation)] if record.metric == "top1" else []),
        _loss(ablation),
        *([] if record.metric in scan_metrics.ALONE else [kl]),
        TableCell(numbers.percent(ablation.changed), sort=_finite(ablation.changed)),
        TableCell(numbers.count(ablation.n), sort=ablation.n),
    ]


def _drop(ablation: Ablation) -> TableCell:
    interval = ablation.top1_drop_interval
    detail = "" if interval is None else numbers.lost_interval(interval)
    return TableCell(numbers.lost(ablation.top1_drop), detail, sort=_finite(ablation.top1_drop))


def _loss(ablation: Ablation) -> TableCell:
    interval = numbers.significant_interval(ablation.loss_increase_interval)
    detail = "no finite interval" if interval == numbers.MISSING else interval
    return TableCell(numbers.significant(ablation.loss_increase), detail, sort=_finite(ablation.loss_increase))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def differing(record: ScanRecord) -> list[tuple[str, str, Ablation, Ablation]]:
    """(path, name, first, second) of every ablation whose verdicts on the two data sets differ."""
    if record.also is None:
        return []
    pairs = [*_pairs(record.blocks, record.also.blocks), *_pairs(record.layers, record.also.layers)]
    return [pair for pair in pairs if pair[2].verdict != pair[3].verdict]


def _pairs(
    first: Sequence[ScannedBlock | ScannedLayer], second: Sequence[ScannedBlock | ScannedLayer]
) -> Iterator[tuple[str, str, Ablation, Ablation]]:
    by_path = {item.path: item.ablations for item in second}
    for item in first:
        for name, ablation in scan_metrics.distinct(item).items():
            if name in by_path.get(item.path, {}):
                yield item.path, name, ablation, by_path[item.path][name]


def data_names(record: ScanRecord) -> list[str]:
    """The names of the two data sets, distinct even if both have the same name."""
    names = [record.data, record.also.data if record.also else ""]
    return names if names[0] != names[1] else ["the first data", "the second data"]


def second(record: ScanRecord) -> Table | None:
    """The verdicts that differ between the two data sets; None if none does."""
    rows = differing(record)
    if record.also is None or not rows:
        return None
    measure = scan_metrics.MEASURES[record.metric]
    names = data_names(record)
    columns = [Column("Block or layer"), Column("Ablation"), *(Column(f"On {name}") for name in names)]
    columns += [Column(f"{measure.name} on {name}, {measure.unit}", number=True) for name in names]
    # A second data set may lack labels that the first has.
    amount = _drop if record.metric == "top1" else _loss
    lines = [
        TableRow(
            path,
            [
                TableCell(name),
                *(TableCell(ablation.verdict, chip=ablation.verdict) for ablation in ablations),
                *(amount(ablation) for ablation in ablations),
            ],
        )
        for path, name, *ablations in rows
    ]
    caption = f"The {len(lines)} ablations whose verdicts differ"
    return Table("second-table", caption, "Filter differences", _HINT, columns, lines)
