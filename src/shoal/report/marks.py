"""One sign for each verdict, told apart by shape: a full circle, a hollow diamond, a hollow circle."""

from shoal.record import Verdict
from shoal.report import readings, svg

# The same three in text, for a terminal.
LETTERS: dict[Verdict | None, str] = {"non-trivial": "■", "undecided": "?", "trivial": "·", None: "–"}


def mark(verdict: Verdict | None, x: float, y: float) -> svg.Markup:
    """The sign of a verdict around a point."""
    style = f"mark {verdict or 'unmeasured'}"
    if verdict == "undecided":
        return svg.tag("path", d=f"M{x:.2f} {y - 5:.2f}l5 5l-5 5l-5 -5z", class_=style)
    return svg.tag("circle", cx=x, cy=y, r=4, class_=style)


def legend() -> list[tuple[str, str]]:
    """Every sign with its meaning."""
    return [(svg.icon(mark(verdict, 11, 11)), verdict) for verdict in readings.VERDICTS]
