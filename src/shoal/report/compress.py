"""The page of a compression."""

from collections.abc import Sequence

from shoal.record import BlockRecord, Record
from shoal.report import chain, comparison, metrics, numbers, text
from shoal.report.damage import KL, Damage, damage_of
from shoal.report.html import Column, KeyFigure, Page, Section, Table, TableCell, TableRow, write_page
from shoal.report.plan import plan_section
from shoal.report.plots import curves
from shoal.report.recovery import recovery_section
from shoal.report.tasks import task_rows

_STATISTICS = (
    ("Top-1", "share of correct answers, with Wilson's 95 % score interval"),
    (
        "Change in top-1",
        "paired by sample, with Tango's 95 % score interval; McNemar's exact test on the samples that changed sides",
    ),
    (
        "Perplexity",
        "the exponential of the mean cross-entropy per token; its 95 % interval treats the sequences as independent, "
        "and the ratio is paired by sequence",
    ),
    ("Divergence", "mean KL(original ‖ compressed) in nats, with a 95 % t interval over samples"),
    (
        "Latency",
        "median and quartiles of one forward pass; “no difference beyond noise” where the quartiles overlap",
    ),
    ("MACs", "multiply-adds for one sample; FLOPs are twice that"),
)
_HOW_DAMAGE = (
    "on calibration samples held out from fitting; on the front, the sum over the changes of a plan, each measured "
    "alone"
)
_BLOCK_COLUMNS = (
    Column("Ratio", number=True),
    Column("Params", number=True),
    Column("Kind"),
    Column("Shortcut"),
    Column("Activation"),
    Column("Shape out", number=True),
)


def render(record: Record) -> str:
    """The page for one record, as text to be written in UTF-8."""
    splits, damage = comparison.comparisons(record), damage_of(record.outputs)
    return write_page(
        record,
        Page(
            "compress.html.j2",
            verb="compressed",
            headline=text.headline(record),
            lead=[record.message] if record.reached and record.message else [],
            sections=_sections(record),
            splits=[(split.split, split.n) for split in splits],
            statistics=_statistics(record),
        ),
        goal=text.goal(record.goal),
        figures=key_figures(record),
        rows=comparison.before_after(record),
        compared=splits,
        grouped=[(metric, metrics.groups(metric)) for metric in record.comparison.metrics if metric.groups],
        paired=comparison.paired(record),
        verdict=text.VERDICTS[record.certificate.verdict],
        evidence=text.evidence(record.certificate),
        plan=plan_section(record),
        recovery=recovery_section(record.recovery, damage),
        evaluations=[(evaluation, task_rows(evaluation)) for evaluation in record.evaluations],
        chain=chain.action_chain(record.blocks, "chain-picture", damage),
        legend=chain.action_legend(),
        blocks_table=block_table(record.blocks, damage),
        damage=damage,
        has_labels=_has_labels(record),
        position=comparison.position(record),
        drop=comparison.drop,
        plots=_step_plots(record),
    )


def _statistics(record: Record) -> list[tuple[str, str]]:
    """How each figure of this record was computed; perplexity instead of accuracy for a language model."""
    omitted = set() if comparison.is_text(record) else {"Perplexity"}
    omitted |= set() if record.original.quality.top1 is not None else {"Top-1", "Change in top-1"}
    omitted |= set() if record.comparison.agreement is not None else {"Divergence"}
    rows = [(name, how) for name, how in _STATISTICS if name not in omitted]
    if record.planning:
        rows.insert(-1, ("Damage", f"{damage_of(record.outputs).quantity}, {_HOW_DAMAGE}"))
    return rows


def _sections(record: Record) -> list[Section]:
    sections = [
        (True, Section("notices")),
        (True, Section("figures")),
        (True, Section("compared", "Before and after")),
        (True, Section("certificate", "Certificate")),
        (record.planning, Section("plan", "The plan")),
        (record.recovery, Section("recovery", "Recovery")),
        (record.evaluations, Section("tasks", "Tasks")),
        (record.blocks, Section("chain", "The chain")),
        (record.steps, Section("steps", "Step by step")),
        (record.blocks, Section("blocks", "All blocks")),
        (True, Section("outcome", "Goal and outcome")),
        (True, Section("load", "How to load it")),
        (True, Section("measured", "How it was measured")),
    ]
    return [section for present, section in sections if present]


def _step_plots(record: Record) -> dict[str, list[str]]:
    """The plots of the greedy removal for each width of the page."""
    kept = [step.removed for step in record.steps if _is_final(step.removed, record)]
    drop = record.goal.get("max_drop")
    lost = _lost(record)
    damage = damage_of(record.outputs)
    limit = float(drop) if isinstance(drop, int | float) and not isinstance(drop, bool) else None
    return {
        size: [
            picture
            for picture in (
                curves.removal_plot(
                    curves.divergences(record.steps, kept), "Divergence from the original", damage, size
                ),
                curves.removal_plot(curves.drops(record.steps, kept), "Drop on validation", lost, size, limit),
            )
            if picture
        ]
        for size in curves.SIZES
    }


def _lost(record: Record) -> Damage:
    """What a drop on validation is counted in: points, or the unit of the task's metric."""
    judged = (step.validation for step in record.steps if step.validation is not None)
    metric = next(filter(None, map(metrics.deciding, judged)), None)
    unit = f"{metrics.loss_unit(metric)} of {metric.label}".removeprefix(" of ") if metric is not None else "points"
    return Damage(f"{unit} lost", f"{unit} lost", f"{unit} lost")


def _has_labels(record: Record) -> bool:
    """Whether any figure of the networks is against labels."""
    against = [metric.against for metric in record.comparison.metrics]
    return record.original.quality.top1 is not None or "labels" in against


def _is_final(step: str, record: Record) -> bool:
    """Whether a removal was kept in the end; a removed unit may have been removed later with its whole block."""
    return step in record.removed_units or step.partition("#")[0].removesuffix("+norms") in record.removed


def key_figures(record: Record) -> list[KeyFigure]:
    """Blocks, quality, speed and MACs, as far as they were measured."""
    figures = [_blocks(record), _quality(record), _speed(record), _macs(record)]
    return [figure for figure in figures if figure is not None]


def _blocks(record: Record) -> KeyFigure:
    before, after = record.original.blocks, record.compressed.blocks
    units = len(record.removed_units)
    more = f", and {text.plural(units, 'unit')}" if units else ""
    return KeyFigure("Blocks", f"{after} of {before}", f"{len(record.removed)} removed{more}")


def _quality(record: Record) -> KeyFigure | None:
    split = record.comparison
    metric = next(iter(split.metrics), None)
    if metric is not None:
        was = f", was {metrics.value(metric, metric.original)}" if metric.original is not None else ""
        value = metrics.value(metric, metric.compressed)
        return KeyFigure(f"{metric.label}, {split.split}", value, f"{metrics.change(metric)}{was}")
    before, after = record.original.quality.top1, record.compressed.quality.top1
    if numbers.known(before) and numbers.known(after):
        detail = f"{numbers.points(split.top1_drop)}, was {numbers.percent(before)}"
        return KeyFigure(f"Top-1, {split.split}", numbers.percent(after), detail)
    before, after = record.original.quality.perplexity, record.compressed.quality.perplexity
    if before is not None and after is not None and numbers.known(before) and numbers.known(after):
        detail = f"{numbers.less(before, after)}, was {numbers.significant(before)}"
        return KeyFigure(f"Perplexity, {split.split}", numbers.significant(after), detail)
    if numbers.known(split.agreement):
        return KeyFigure(f"Agreement, {split.split}", numbers.percent(split.agreement), "same answer as the original")
    return None


def _speed(record: Record) -> KeyFigure | None:
    timed = [pair for pair in comparison.latency_pairs(record) if pair.speedup is not None]
    if not timed:
        return None
    pair = timed[-1]
    value = f"{numbers.ratio(pair.speedup or 1.0)} ×"
    if pair.within_noise:
        return KeyFigure(f"Speed, batch {pair.batch}", value, "no difference beyond noise")
    if not pair.medians_agree:
        return KeyFigure(f"Speed, batch {pair.batch}", value, comparison.IN_PAIRS)
    times = [numbers.milliseconds(side.median_ms) for side in (pair.compressed, pair.original) if side]
    return KeyFigure(f"Speed, batch {pair.batch}", value, f"{times[0]}, was {times[1]}")


def _macs(record: Record) -> KeyFigure:
    before, after = record.original.cost.macs, record.compressed.cost.macs
    return KeyFigure("MACs", numbers.amount(after), f"{numbers.less(before, after)}, was {numbers.amount(before)}")


def block_table(blocks: Sequence[BlockRecord], damage: Damage = KL) -> Table | None:
    """Every block with its action; None where there are no blocks."""
    if not blocks:
        return None
    caption = f"The {text.plural(len(blocks), 'block')} of the original"
    first = (Column("Block"), Column("Stage", number=True), Column("Action"), Column(damage.heading, number=True))
    columns = (*first, *_BLOCK_COLUMNS)
    lines = [TableRow(block.path, _block_entries(block), block.action) for block in blocks]
    return Table("all-blocks", caption, "Filter blocks", "name, stage, removed …", columns, lines)


def _block_entries(block: BlockRecord) -> list[TableCell]:
    damage, interval = block.removal_kl, block.removal_kl_interval
    return [
        TableCell(str(block.stage), sort=block.stage),
        TableCell(chain.action(block), chain.why_fixed(block), chip=block.action),
        TableCell(
            numbers.significant(damage), "" if interval is None else numbers.significant_interval(interval), sort=damage
        ),
        TableCell(numbers.significant(block.residual_ratio), sort=block.residual_ratio),
        TableCell(numbers.amount(block.params), sort=block.params),
        TableCell(block.kind),
        TableCell(block.shortcut),
        TableCell(block.activation or numbers.MISSING),
        TableCell(numbers.shape(block.out_shape), sort=block.out_shape[0] if block.out_shape else None),
    ]
