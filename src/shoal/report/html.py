"""A record as one HTML page: no network, no other file, and nothing runs but its own few lines."""

from functools import lru_cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined

from shoal.record import Record
from shoal.report import numbers, picture, plot, tables, words
from shoal.report.figures import figures

_FILTERS = (
    "percent",
    "percent_interval",
    "points",
    "count",
    "amount",
    "significant",
    "significant_interval",
    "duration",
    "shape",
)
# A wide drawing for a desk and for paper, a narrow one for a phone; the style sheet shows one of them.
_CHAIN_WIDTHS = {"wide": 1000.0, "narrow": 340.0}
_PLOT_WIDTHS = {"wide": 480.0, "narrow": 340.0}


def render(record: Record) -> str:
    """The whole page for one record, as text to be written in UTF-8."""
    page = _environment().get_template("report.html.j2")
    return page.render(
        record=record,
        headline=words.headline(record),
        goal=words.goal(record.goal),
        figures=figures(record),
        rows=tables.before_after(record),
        splits=tables.comparisons(record),
        paired=tables.paired(record),
        verdict=words.VERDICTS[record.certificate.verdict],
        evidence=words.evidence(record.certificate),
        chains={size: picture.chain(record.blocks, w, f"chain-{size}") for size, w in _CHAIN_WIDTHS.items()},
        legend=picture.legend(),
        plots={size: _plots(record, size) for size in _PLOT_WIDTHS},
        embedded=embed(record),
        style=_asset("report.css"),
        script=_asset("report.js"),
    )


def embed(record: Record) -> str:
    """The record as JSON that is inert inside a `script` element, whatever its strings hold."""
    text = record.model_dump_json()
    # Inside a string literal of JSON these escapes mean the same characters; outside they do not occur.
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _plots(record: Record, size: str) -> list[str]:
    width = _PLOT_WIDTHS[size]
    asked = record.goal.get("max_drop")
    limit = float(asked) if isinstance(asked, int | float) and not isinstance(asked, bool) else None
    drawn = [
        plot.plot(
            plot.divergences(record.steps, record.removed),
            "Divergence from the original",
            "nats",
            width,
            f"kl-{size}",
        ),
        plot.plot(
            plot.drops(record.steps, record.removed),
            "Drop on validation",
            "points lost",
            width,
            f"drop-{size}",
            limit=limit,
        ),
    ]
    return [one for one in drawn if one]


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
    return environment


def tied(text: str) -> str:
    """Text in which a number stays on one line with its per cent sign."""
    return text.replace(" %", "\u00a0%")


def _asset(name: str) -> str:
    return files("shoal.report").joinpath("templates", name).read_text(encoding="utf-8")
