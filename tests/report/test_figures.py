from shoal.record import Record
from shoal.report.figures import figures


def test_four_figures(record: Record) -> None:
    assert [(one.name, one.value) for one in figures(record)] == [
        ("Blocks", "13 of 27"),
        ("Top-1, test", "98.5 %"),
        ("Speed, batch 128", "1.92 ×"),
        ("MACs", "60.1 M"),
    ]


def test_what_was_not_measured_is_left_out(bare: Record) -> None:
    assert [one.name for one in figures(bare)] == ["Blocks", "Agreement, test", "MACs"]
