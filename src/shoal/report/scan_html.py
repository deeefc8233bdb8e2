"""The page of a scan."""

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.record import ScannedBlock, ScanRecord, ScoreQuality
from shoal.report import ablations, forest, marks, numbers, page, readings, scan_tables, scan_words, scatter, worths
from shoal.report.page import Part
from shoal.report.scan_figures import scan_figures

# A wide drawing for a desk and for paper, a narrow one for a phone; the style sheet shows one of them.
_WIDTHS = {"wide": 1000.0, "narrow": 340.0}
# Room for the scroll bar and the frame of the box the intervals lie in.
_BOX = 30.0


@dataclass(frozen=True)
class Intervals:
    """One plot of intervals in two widths, with all it needs beside it."""

    ident: str
    name: str
    heads: dict[str, str]
    bodies: dict[str, list[str]]
    squeezed: bool


@dataclass(frozen=True)
class Scored:
    """One score: how well it orders the blocks, in numbers, words and a picture."""

    quality: ScoreQuality
    name: str
    what: str
    meaning: str
    picture: str
    link: str


def render_scan(record: ScanRecord) -> str:
    """The whole page for one scan, as text to be written in UTF-8."""
    return page.write(
        record,
        verb="scanned",
        headline=scan_words.headline(record),
        lead=scan_words.importance(record),
        parts=_parts(record),
        splits=_splits(record),
        facts=[("Comparisons", numbers.count(record.comparisons)), ("Took", numbers.duration(record.seconds))],
        statistics=scan_words.methods(record),
        figures=scan_figures(record),
        measure=readings.MEASURES[record.metric],
        tolerance=scan_words.tolerance(record),
        claim=scan_words.claim(record),
        claim_rows=_claim_rows(record),
        verdicts=readings.VERDICTS,
        chains=_chains(record.blocks, record, "chain"),
        legend=worths.legend(),
        marks=marks.legend(),
        blocks_plot=_intervals(ablations.blocks(record), record, "blocks-plot", "Blocks taken out, one at a time"),
        layers_plot=_intervals(ablations.layers(record), record, "layers-plot", "Kernels set to zero, one at a time"),
        blocks_table=scan_tables.blocks(record),
        ablations_table=scan_tables.ablations(record),
        layers_table=scan_tables.layers(record),
        scored=[_scored(i, one, record) for i, one in enumerate(scan_words.by_correlation(record.scores))],
        scores_table=scan_tables.scores(record),
        second=scan_words.second(record),
        second_table=scan_tables.second(record),
        second_chains=_chains(record.also.blocks, record, "second") if record.also else None,
        names=scan_tables.data_names(record),
    )


def _parts(record: ScanRecord) -> list[Part]:
    found = [Part("figures.html.j2"), Part("scan_notes.html.j2")]
    if record.blocks:
        found.append(Part("worths.html.j2", "chain", "The chain"))
        found.append(Part("scan_blocks.html.j2", "blocks", "Which blocks matter"))
    if record.layers:
        found.append(Part("scan_layers.html.j2", "layers", "Which kernels matter"))
    if record.scores:
        found.append(Part("scores.html.j2", "scores", "Scores against ablation"))
    if record.also:
        found.append(Part("second.html.j2", "second", "On a second data set"))
    return [*found, Part("measured.html.j2", "measured", "How it was measured")]


def _splits(record: ScanRecord) -> list[tuple[str, int]]:
    found = [(record.baseline.split, record.baseline.n)]
    if record.also:
        found.append((f"{record.also.data}, {record.also.baseline.split}", record.also.baseline.n))
    return found


def _chains(blocks: Sequence[ScannedBlock], record: ScanRecord, ident: str) -> dict[str, str]:
    return {size: worths.chain(blocks, record.metric, w, f"{ident}-{size}") for size, w in _WIDTHS.items()}


def _intervals(groups: list[forest.Group], record: ScanRecord, ident: str, name: str) -> Intervals | None:
    if not groups:
        return None
    canvases = {size: ablations.canvas(groups, record, width - _BOX) for size, width in _WIDTHS.items()}
    bodies = {
        size: [forest.body(group, canvas, f"{ident}-{size}-{i}") for i, group in enumerate(groups)]
        for size, canvas in canvases.items()
    }
    heads = {size: forest.head(canvas) for size, canvas in canvases.items()}
    return Intervals(ident, name, heads, bodies, ablations.squeezed(groups, record))


def _claim_rows(record: ScanRecord) -> list[tuple[str, list[int]]]:
    if record.claim is None:
        return []
    groups = (("Changes the number of channels", record.claim.changing), ("Keeps it", record.claim.others))
    return [(name, [found.get(word, 0) for word in readings.VERDICTS]) for name, found in groups]


def _scored(index: int, one: ScoreQuality, record: ScanRecord) -> Scored:
    name, meaning = one.name.replace("_", " "), scan_words.meaning(one)
    points = [
        scatter.Point(block.path, block.scores[one.name], ablation.kl, ablation.verdict)
        for block in record.blocks
        if one.name in block.scores and (ablation := readings.main(block))
    ]
    drawn = scatter.scatter(points, name, f"score-{index}", f"{len(points)} blocks. {meaning}")
    return Scored(one, name, scan_words.SCORES.get(one.name, ""), meaning, drawn, _link(one.source))


def _link(source: str) -> str:
    """The address of a paper on arXiv; empty for any other source."""
    name, _, number = source.partition(":")
    return f"https://arxiv.org/abs/{number}" if name == "arXiv" and number.replace(".", "").isdigit() else ""
