"""The page of a scan."""

from dataclasses import dataclass

from shoal.record import ScanRecord, ScoreQuality
from shoal.report import chain, numbers, scan_metrics, scan_tables, scan_text
from shoal.report.damage import damage_of
from shoal.report.html import KeyFigure, Page, Section, write_page
from shoal.report.plots import intervals, scatter


@dataclass(frozen=True)
class ScoreCard:
    """One score: how well it ranks the blocks, in numbers, words and a plot."""

    quality: ScoreQuality
    name: str
    definition: str
    meaning: str
    plot: str
    link: str


def render_scan(record: ScanRecord) -> str:
    """The page for one scan, as text to be written in UTF-8."""
    also = record.also
    return write_page(
        record,
        Page(
            "scan.html.j2",
            verb="scanned",
            headline=scan_text.headline(record),
            lead=scan_text.importance(record),
            sections=_sections(record),
            splits=_splits(record),
            facts=[("Comparisons", numbers.count(record.comparisons)), ("Duration", numbers.duration(record.seconds))],
            statistics=scan_text.methods(record),
        ),
        figures=key_figures(record),
        measure=scan_metrics.MEASURES[record.metric],
        margin=scan_text.margin(record),
        hypothesis=scan_text.channel_hypothesis(record),
        hypothesis_rows=_hypothesis_rows(record),
        verdicts=scan_metrics.VERDICTS,
        chain=chain.verdict_chain(record.blocks, record.metric, "chain-picture"),
        damage=damage_of(record.outputs),
        legend=chain.verdict_legend(),
        marks=[(f"mark {verdict}", verdict) for verdict in scan_metrics.VERDICTS],
        blocks_plot=intervals.block_plot(record),
        layers_plot=intervals.layer_plot(record),
        blocks_table=scan_tables.blocks(record),
        ablations_table=scan_tables.ablations(record),
        layers_table=scan_tables.layers(record),
        scored=[_score_card(i, score, record) for i, score in enumerate(scan_text.by_correlation(record.scores))],
        scores_table=scan_tables.scores(record),
        second=scan_text.second(record),
        second_table=scan_tables.second(record),
        second_chain=chain.verdict_chain(also.blocks, record.metric, "second-picture") if also else None,
        names=scan_tables.data_names(record),
    )


def _sections(record: ScanRecord) -> list[Section]:
    sections = [
        (True, Section("figures")),
        (True, Section("notes")),
        (record.blocks, Section("chain", "The chain")),
        (record.blocks, Section("blocks", "Which blocks matter")),
        (record.layers, Section("layers", "Which kernels matter")),
        (record.scores, Section("scores", "Scores against ablation")),
        (record.also, Section("second", "On a second data set")),
        (True, Section("measured", "How it was measured")),
    ]
    return [section for present, section in sections if present]


def _splits(record: ScanRecord) -> list[tuple[str, int]]:
    also = record.also
    second = [(f"{also.data}, {also.baseline.split}", also.baseline.n)] if also else []
    return [(record.baseline.split, record.baseline.n), *second]


def _hypothesis_rows(record: ScanRecord) -> list[tuple[str, list[int]]]:
    if record.claim is None:
        return []
    groups = (("Changes the number of channels", record.claim.changing), ("Keeps it", record.claim.others))
    return [(name, [counts.get(verdict, 0) for verdict in scan_metrics.VERDICTS]) for name, counts in groups]


def _score_card(index: int, score: ScoreQuality, record: ScanRecord) -> ScoreCard:
    name, meaning = score.name.replace("_", " "), scan_text.meaning(score)
    points = [
        scatter.Point(block.path, block.scores[score.name], ablation.kl, ablation.verdict)
        for block in record.blocks
        if score.name in block.scores and (ablation := scan_metrics.main(block))
    ]
    drawn = scatter.plot(points, name, f"score-{index}", f"{len(points)} blocks. {meaning}", damage_of(record.outputs))
    return ScoreCard(score, name, scan_text.SCORES.get(score.name, ""), meaning, drawn, _link(score.source))


def _link(source: str) -> str:
    """The address of a paper on arXiv; empty for any other source."""
    name, _, number = source.partition(":")
    return f"https://arxiv.org/abs/{number}" if name == "arXiv" and number.replace(".", "").isdigit() else ""


def key_figures(record: ScanRecord) -> list[KeyFigure]:
    """Trivial blocks, layers that matter, the full network, the best score, as far as they were measured."""
    figures = [_blocks(record), _layers(record), _quality(record), _best_score(record)]
    return [figure for figure in figures if figure is not None]


def _blocks(record: ScanRecord) -> KeyFigure | None:
    if not record.blocks:
        return None
    counts = scan_metrics.counts(record.blocks)
    value = f"{counts['trivial']} of {len(record.blocks)}"
    return KeyFigure("Trivial blocks", value, f"{counts['non-trivial']} are non-trivial")


def _layers(record: ScanRecord) -> KeyFigure | None:
    if not record.layers:
        return None
    counts = scan_metrics.counts(record.layers)
    value = f"{counts['non-trivial']} of {len(record.layers)}"
    return KeyFigure("Non-trivial layers", value, f"{counts['trivial']} are trivial")


def _quality(record: ScanRecord) -> KeyFigure | None:
    quality = record.baseline
    if numbers.known(quality.top1):
        interval = numbers.percent_interval(quality.top1_interval)
        return KeyFigure(f"Top-1, {quality.split}", numbers.percent(quality.top1), interval)
    if numbers.known(quality.loss):
        n = f"nats, n = {numbers.count(quality.n)}"
        return KeyFigure(f"Loss, {quality.split}", numbers.significant(quality.loss), n)
    return None


def _best_score(record: ScanRecord) -> KeyFigure | None:
    best = next(iter(scan_text.by_correlation(record.scores)), None)
    if best is None or not numbers.known(best.correlation):
        return None
    return KeyFigure("Best score", numbers.signed(best.correlation), best.name.replace("_", " "))
