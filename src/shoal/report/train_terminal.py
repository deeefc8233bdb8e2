"""A training run in short, for the terminal."""

from pathlib import Path

from rich.console import Console

from shoal.report import train_words
from shoal.report.grid import Grid, say
from shoal.report.tables import Cell
from shoal.training import TrainRecord


def show_training(record: TrainRecord, out: str, console: Console) -> None:
    """Print what came of the training, in a screenful.

    Args:
        record: of the run.
        out: the folder it was written to.
        console: to print on.
    """
    say(console, train_words.headline(record), "bold")
    say(console, "")
    grid = Grid(("", "with frozen gates", "plain", "change"), frozenset({1, 2}))
    for row in train_words.rows(record):
        grid.add(row.label, _cell(row.original), _cell(row.compressed), row.change)
    grid.show(console)
    say(console, "")
    for sentence in train_words.lead(record):
        say(console, sentence)
    for sentence in train_words.beside(record):
        say(console, sentence)
    for warning in record.warnings:
        say(console, f"warning: {warning}", "yellow")
    say(console, "")
    say(console, f"Report: {Path(out) / 'report.html'}")


def _cell(cell: Cell) -> str:
    return f"{cell.value} ({cell.detail})" if cell.detail else cell.value
