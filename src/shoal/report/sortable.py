"""Tables that sort and filter, as data: the same template writes them all."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One column; columns of numbers are sorted as numbers and set flush right."""

    name: str
    number: bool = False


@dataclass(frozen=True)
class Entry:
    """One cell.

    Args:
        text: what is read.
        detail: what is read below it, smaller.
        sort: what it is sorted by, where that is not the text; None means not known, and stays at the end.
        chip: the style of a label around the text, if any.
        code: whether the text is a name out of the program.
    """

    text: str
    detail: str = ""
    sort: float | None = None
    chip: str = ""
    code: bool = False


@dataclass(frozen=True)
class Line:
    """One row: the cell that names it, the others, and its style."""

    head: str
    entries: Sequence[Entry]
    style: str = ""


@dataclass(frozen=True)
class Table:
    """A whole table.

    Args:
        ident: unique on the page.
        caption: what it shows.
        filter: the name of its filter.
        hint: examples of what to filter by.
        columns: the first names the rows.
        lines: each with an entry for every column but the first.
    """

    ident: str
    caption: str
    filter: str
    hint: str
    columns: Sequence[Column]
    lines: Sequence[Line]
