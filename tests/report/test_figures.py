from handmade import language_record

from shoal.record import Record
from shoal.report.figures import Figure, figures


def test_four_figures(record: Record) -> None:
    assert [(one.name, one.value) for one in figures(record)] == [
        ("Blocks", "13 of 27"),
        ("Top-1, test", "98.5 %"),
        ("Speed, batch 128", "1.92 ×"),
        ("MACs", "60.1 M"),
    ]


def test_what_was_not_measured_is_left_out(bare: Record) -> None:
    assert [one.name for one in figures(bare)] == ["Blocks", "Agreement, test", "MACs"]


def test_a_language_model_shows_its_perplexity() -> None:
    assert figures(language_record())[1] == Figure("Perplexity, test", "24.7", "9.9 % more, was 22.5")
