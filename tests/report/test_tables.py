import math

from handmade import language_record

from shoal.record import Record
from shoal.report import tables


def test_every_measure_has_its_row(record: Record) -> None:
    rows = {row.label: row for row in tables.before_after(record)}
    assert list(rows) == [
        "Top-1 accuracy",
        "Loss",
        "Latency, batch 1",
        "Latency, batch 128",
        "Residual blocks",
        "Parameters",
        "MACs",
        "Weights on disk",
    ]
    assert rows["Top-1 accuracy"].original == tables.Cell("98.8 %", "97.1 – 99.5 %")
    assert rows["Top-1 accuracy"].change == "lost 0.25 points"
    assert rows["Residual blocks"].change == "14 fewer"
    assert rows["Latency, batch 128"].compressed == tables.Cell("110 ms", "109 – 113 ms")


def test_rows_about_labels_vanish_with_the_labels(bare: Record) -> None:
    labels = [row.label for row in tables.before_after(bare)]
    assert labels == ["Residual blocks", "Parameters", "MACs", "Weights on disk"]
    assert [row.label for row in tables.paired(bare)] == ["Agreement", "Divergence"]


def test_validation_stands_beside_test(record: Record) -> None:
    assert [one.split for one in tables.comparisons(record)] == ["test", "validation"]
    (drop, sides, p, *_) = tables.paired(record)
    assert [cell.value for cell in drop.cells] == ["lost 0.25 points", "lost 0.35 points"]
    assert drop.cells[0].detail == "0.88 gained to 1.40 lost"
    assert sides.cells[0].value == "2 lost, 1 won"
    assert p.cells[0].value == "p = 1.00"


def test_a_language_model_has_perplexity_instead_of_accuracy() -> None:
    rows = {row.label: row for row in tables.before_after(language_record())}
    assert list(rows)[:2] == ["Perplexity", "Loss"]
    perplexity = rows["Perplexity"]
    assert perplexity.note == "test, n = 8, 4,088 tokens, 95 % interval"
    assert perplexity.original == tables.Cell("22.5", "20.3 – 25.0")
    assert perplexity.compressed == tables.Cell("24.7", "22.0 – 27.9")
    assert perplexity.change == "9.9 % more"
    assert rows["Loss"].compressed == tables.Cell("3.21", "3.09 – 3.33")
    assert rows["Loss"].change == "0.0942 more"


def test_perplexities_are_compared_on_the_same_tokens() -> None:
    rows = {row.label: row for row in tables.paired(language_record())}
    assert list(rows) == ["Perplexity, ratio", "Increase of the loss", "Agreement", "Divergence"]
    assert rows["Perplexity, ratio"].cells == [tables.Cell("1.10", "1.07 – 1.12")]
    assert rows["Increase of the loss"].cells == [tables.Cell("0.0942", "0.0721 – 0.116")]


def test_a_single_sequence_has_no_interval() -> None:
    record = language_record()
    alone = record.comparison.model_copy(update={"loss_increase_interval": (-math.inf, math.inf)})
    assert tables.perplexity_change(alone) == "Perplexity, paired by sequence: 1.10 times the original's"
    assert tables.perplexity_change(record.comparison).endswith("original's, 95 % interval 1.07 – 1.12")
    quality = record.original.quality.model_copy(update={"perplexity_interval": (0.0, math.inf)})
    one = record.model_copy(update={"original": record.original.model_copy(update={"quality": quality})})
    assert tables.before_after(one)[0].original == tables.Cell("22.5", "")
