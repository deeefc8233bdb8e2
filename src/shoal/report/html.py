"""A record as one HTML page: it loads nothing, works offline, and runs only its own few lines of script."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from pydantic import BaseModel

from shoal.report import numbers

_LONG_NAME = 16  # characters that a column has room for in any window
_FILTERS = (
    "amount",
    "count",
    "duration",
    "milliseconds",
    "percent",
    "points",
    "significant",
    "significant_interval",
    "signed",
    "signed_interval",
)


@dataclass(frozen=True)
class Section:
    """One section of a page: the template block that writes it, and its entry in the contents.

    The name is the section's id; a section without a title is not in the contents.
    """

    name: str
    title: str = ""


@dataclass(frozen=True)
class KeyFigure:
    """A name, a large number, and a detail such as the value before."""

    name: str
    value: str
    detail: str


@dataclass(frozen=True)
class Column:
    """One column; columns of numbers are sorted as numbers and aligned right."""

    name: str
    number: bool = False


@dataclass(frozen=True)
class TableCell:
    """One table cell.

    Args:
        text: of the cell.
        detail: a second line in smaller type.
        sort: the sort key where that is not the text; None means unknown, and stays at the end.
        chip: the style of a label around the text, if any.
        code: whether the text is an identifier.
    """

    text: str
    detail: str = ""
    sort: float | None = None
    chip: str = ""
    code: bool = False


@dataclass(frozen=True)
class TableRow:
    """One table row: its heading, the other cells, and its style."""

    head: str
    entries: Sequence[TableCell]
    style: str = ""


@dataclass(frozen=True)
class Table:
    """A table that the reader can sort and filter.

    Args:
        ident: unique on the page.
        caption: what the table shows.
        filter: label of the filter.
        hint: examples of what to filter by.
        columns: the first is the heading of the rows.
        rows: each with an entry for every column but the first.
    """

    ident: str
    caption: str
    filter: str
    hint: str
    columns: Sequence[Column]
    rows: Sequence[TableRow]


@dataclass(frozen=True)
class Page:
    """What every page has.

    Args:
        template: whose blocks write the sections.
        verb: what was done to the model.
        headline: clauses, separated by "; ".
        lead: sentences below the headline.
        sections: in order.
        splits: (name, n) of the data that was measured on.
        statistics: (figure, how it was computed).
        facts: (name, value) of other conditions of the measurement.
    """

    template: str
    verb: str
    headline: str
    lead: Sequence[str]
    sections: Sequence[Section]
    splits: Sequence[tuple[str, int]]
    statistics: Sequence[tuple[str, str]]
    facts: Sequence[tuple[str, str]] = ()


def write_page(record: BaseModel, page: Page, **content: Any) -> str:
    """The whole page, as text to be written in UTF-8.

    Args:
        record: read by the template and embedded in the page.
        page: what the page has in common with others.
        content: the variables of its sections.
    """
    return (
        _environment()
        .get_template(page.template)
        .render(
            record=record,
            page=page,
            embedded=embed(record),
            style=_asset("report.css"),
            script=_asset("report.js"),
            **content,
        )
    )


def embed(record: BaseModel) -> str:
    """The record as JSON that is inert inside a `script` element, whatever its strings hold."""
    text = record.model_dump_json()
    # Inside a JSON string these escapes stand for the same characters, and they occur nowhere else.
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("shoal.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({name: getattr(numbers, name) for name in _FILTERS})
    environment.filters["nowrap"] = nowrap
    environment.filters["code"] = code
    environment.filters["breakable"] = breakable
    return environment


def nowrap(text: str) -> str:
    """Text in which a number stays on one line with its per cent sign."""
    return text.replace(" %", "\u00a0%")


def code(text: str) -> Markup:
    """Text in which whatever stands between backticks is code; an odd backtick is a backtick."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        return escape(text)
    wrapped = [Markup("<code>{}</code>").format(piece) if i % 2 else escape(piece) for i, piece in enumerate(pieces)]
    return Markup("").join(wrapped)


def breakable(name: str) -> Markup:
    """A name that may be broken behind its dots and underscores and before its capitals, if it is a long one."""
    if len(name) <= _LONG_NAME:
        return escape(name)
    return Markup("<wbr/>").join(re.split(r"(?<=[._/])(?=[^._/])|(?<=[a-z0-9])(?=[A-Z])", name))


def _asset(name: str) -> str:
    return files("shoal.report").joinpath("templates", name).read_text(encoding="utf-8")
