"""A record as one HTML page: no network, no other file, and nothing runs but its own few lines."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from shoal.record import Record, ScanRecord
from shoal.report import numbers

_FILTERS = (
    "percent",
    "percent_interval",
    "points",
    "count",
    "amount",
    "significant",
    "significant_interval",
    "signed",
    "signed_interval",
    "milliseconds",
    "duration",
    "shape",
)


@dataclass(frozen=True)
class Part:
    """One part of a page: its template, and how the contents call it where they lead there."""

    template: str
    ident: str = ""
    title: str = ""


def write(
    record: Record | ScanRecord,
    *,
    verb: str,
    headline: str,
    lead: Sequence[str],
    parts: Sequence[Part],
    splits: Sequence[tuple[str, int]],
    facts: Sequence[tuple[str, str]] = (),
    statistics: Sequence[tuple[str, str]],
    **content: Any,
) -> str:
    """The whole page, as text to be written in UTF-8.

    Args:
        record: to be embedded, and read by the templates.
        verb: what was done to the model.
        headline: clauses, separated by "; ".
        lead: sentences under it.
        parts: of the page, in order.
        splits: (name, n) of the data that was measured on.
        facts: (name, value) of whatever else the measuring depends on.
        statistics: (figure, how it was computed).
        content: whatever the templates of the parts ask for.
    """
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            record=record,
            verb=verb,
            headline=headline,
            lead=lead,
            parts=parts,
            splits=splits,
            facts=facts,
            statistics=statistics,
            embedded=embed(record),
            style=_asset("report.css"),
            script=_asset("report.js"),
            **content,
        )
    )


def embed(record: Record | ScanRecord) -> str:
    """The record as JSON that is inert inside a `script` element, whatever its strings hold."""
    text = record.model_dump_json()
    # Inside a string literal of JSON these escapes mean the same characters; outside they do not occur.
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
    environment.filters["tied"] = tied
    environment.filters["coded"] = coded
    return environment


def tied(text: str) -> str:
    """Text in which a number stays on one line with its per cent sign."""
    return text.replace(" %", "\u00a0%")


def coded(text: str) -> Markup:
    """Text in which whatever stands between backticks is code; an odd backtick is a backtick."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        return escape(text)
    wrapped = [Markup("<code>{}</code>").format(one) if i % 2 else escape(one) for i, one in enumerate(pieces)]
    return Markup("").join(wrapped)


def _asset(name: str) -> str:
    return files("shoal.report").joinpath("templates", name).read_text(encoding="utf-8")
