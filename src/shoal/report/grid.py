"""Lines for a terminal: aligned columns that never cut or fold a cell, and text free of control codes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

# What a terminal without Unicode is shown instead.
_PLAIN = str.maketrans(
    {
        "–": "-",
        "→": "->",
        "−": "-",
        "×": "x",
        "·": ".",
        "■": "#",
        "○": "o",
        "‖": "||",
        "⁻": "-",
        "“": '"',
        "”": '"',
        "’": "'",
        "…": "...",
        "≠": "!=",
        "≈": "~",
        **{sign: str(digit) for digit, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    }
)
_GAP = "  "


@dataclass
class Grid:
    """Rows of cells under a heading; `right` names the columns that hold numbers."""

    heading: Sequence[str]
    right: frozenset[int] = frozenset()
    rows: list[Sequence[str]] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)

    def add(self, *cells: str, style: str = "") -> None:
        """One more row."""
        self.rows.append(cells)
        self.styles.append(style)

    def show(self, console: Console) -> None:
        """Print it; a line too long for the terminal goes on in the next, uncut."""
        rows = [[fit(cell, console) for cell in row] for row in (self.heading, *self.rows)]
        widths = [max(cell_len(cell) for cell in column) for column in zip(*rows, strict=True)]
        for row, style in zip(rows, ["dim", *self.styles], strict=True):
            cells = [self._pad(i, cell, widths[i]) for i, cell in enumerate(row)]
            say(console, _GAP.join(cells).rstrip(), style)

    def _pad(self, index: int, cell: str, width: int) -> str:
        space = " " * (width - cell_len(cell))
        return space + cell if index in self.right else cell + space


def say(console: Console, text: str, style: str = "") -> None:
    """Print one line as it is: no markup read from it, never wrapped, never cut."""
    console.print(Text(fit(text, console), style=style), soft_wrap=True)


def fit(text: str, console: Console) -> str:
    """Text that this console can show: control characters spelt out, and ASCII where it has nothing else."""
    printable = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
    if not console.options.ascii_only:
        return printable
    return printable.translate(_PLAIN).encode("ascii", "backslashreplace").decode("ascii")
