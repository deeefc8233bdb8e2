"""The page of a training run."""

from typing import Any

from shoal.report import fates, numbers, page, train_curves, train_gates, train_tables, train_words, words
from shoal.report.page import Part
from shoal.training import TrainRecord

# A wide drawing for a desk and for paper, a narrow one for a phone; the style sheet shows one of them.
_WIDTHS = {"wide": 1000.0, "narrow": 340.0}
_STATISTICS = (
    ("Top-1", "share of right answers, 95 % Wilson score interval; the network after the last epoch, nothing chosen"),
    ("Error by epoch", "train: augmented samples as they were trained on; test: looked at only"),
    ("Lost", "the gate was closed on every step of as many epochs in a row as the settings say (`freeze_after`)"),
    (
        "Parameters, MACs",
        "counted in the networks themselves, not scaled by the share of blocks; 1 MAC = 1 multiply-add",
    ),
)


def render_training(record: TrainRecord) -> str:
    """The whole page for one run, as text to be written in UTF-8."""
    given: Any = record  # the page embeds any record
    return page.write(
        given,
        verb="trained",
        headline=train_words.headline(record),
        lead=train_words.lead(record),
        parts=_parts(record),
        splits=[("train", record.samples), ("test", record.settled.plain.quality.n)],
        facts=_facts(record),
        statistics=_STATISTICS,
        figures=train_words.figures(record),
        train_rows=train_words.rows(record),
        verdict=words.VERDICTS[record.settled.certificate.verdict],
        evidence=words.evidence(record.settled.certificate),
        curves={size: train_curves.curves(record.rows, width, f"curves-{size}") for size, width in _WIDTHS.items()},
        gates={size: train_gates.gates(record, width, f"gates-{size}") for size, width in _WIDTHS.items()},
        gates_legend=train_gates.legend(),
        chains={size: fates.chain(record.blocks, width, f"chain-{size}") for size, width in _WIDTHS.items()},
        lost_table=train_tables.lost(record),
        beside_table=train_tables.beside(record),
    )


def _parts(record: TrainRecord) -> list[Part]:
    found = [
        Part("train_warnings.html.j2"),
        Part("figures.html.j2"),
        Part("train_curves.html.j2", "curves", "Epoch by epoch"),
    ]
    if any(row.largest for row in record.rows):
        found.append(Part("train_gates.html.j2", "gates", "Responses against epsilon"))
    found.append(Part("train_result.html.j2", "result", "Before and after"))
    if record.beside:
        found.append(Part("train_beside.html.j2", "beside", "Beside it"))
    return [
        *found,
        Part("load.html.j2", "load", "How to load it"),
        Part("measured.html.j2", "measured", "How it was measured"),
    ]


def _facts(record: TrainRecord) -> list[tuple[str, str]]:
    settings = record.settings
    freeze = settings.get("freeze_after")
    return [
        ("Recipe", f"{record.recipe}, {numbers.count(len(record.rows))} epochs, {numbers.count(record.steps)} steps"),
        ("Epsilon", f"{settings.get('epsilon')}"),
        ("Frozen after", f"{freeze} epochs closed" if freeze else "its weights had died (faithful)"),
        ("Side supervision", "yes" if settings.get("side") else "no"),
        ("Took", numbers.duration(record.seconds)),
    ]
