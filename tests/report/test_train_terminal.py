import io

from rich.console import Console
from trained import make_training

from shoal.report.train_terminal import show_training


def shown(record, width=100):
    out = io.StringIO()
    show_training(record, "o", Console(file=out, width=width, highlight=False))
    return out.getvalue()


def test_a_screenful():
    said = shown(make_training())
    assert said.startswith("2 of 6 blocks lost in training")
    assert "with frozen gates" in said
    assert "warning: 2 of 2 lost blocks" in said
    assert "o/report.html" in said
    assert len(said.splitlines()) < 30


def test_markup_in_a_name_is_text():
    assert "[bold]" in shown(make_training(warnings=["[bold]x[/bold]"]))
