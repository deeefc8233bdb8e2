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
