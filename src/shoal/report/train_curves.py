"""Error and learning rate over the epochs of a training run, with the losses of blocks marked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.report import numbers, svg
from shoal.report.scales import Linear, Scale, decades, ticks
from shoal.training import EpochRow

_LEFT, _RIGHT = 62.0, 14.0
_HEAD, _GAP = 40.0, 44.0
_TALL, _LOW = 190.0, 90.0


@dataclass(frozen=True)
class Panel:
    """One set of axes: where it lies, and how values land in it."""

    top: float
    height: float
    width: float
    epochs: int
    scale: Scale

    def x(self, epoch: float) -> float:
        """The pixel column of an epoch, from 1."""
        return _LEFT + (self.width - _LEFT - _RIGHT) * (epoch - 1) / max(self.epochs - 1, 1)

    def y(self, value: float) -> float:
        """The pixel row of a value."""
        return self.top + self.height * (1 - self.scale.at(value))


def curves(rows: Sequence[EpochRow], width: float, ident: str) -> str:
    """Errors above, blocks alive and learning rate below; empty text without epochs.

    Args:
        rows: in order.
        width: in pixels.
        ident: prefix of the ids inside, unique on the page.
    """
    if not rows:
        return ""
    last = rows[-1].epoch
    most = max(100 * max(row.train_error, row.test_error or 0.0) for row in rows)
    error = Panel(_HEAD, _TALL, width, last, decades([max(most, 1.0), _least(rows)]))
    alive = Panel(_HEAD + _TALL + _GAP, _LOW, width, last, Linear(0, max(row.alive for row in rows) or 1))
    rate = Panel(_HEAD + _TALL + _LOW + 2 * _GAP, _LOW, width, last, decades([row.rate for row in rows] or [1]))
    drawn: list[str] = []
    for panel, title in (
        (error, "Error, per cent: line train (augmented), dots test; logarithmic"),
        (alive, "Blocks alive; vertical lines: an epoch with more blocks closed than the one before"),
        (rate, "Learning rate, logarithmic"),
    ):
        drawn += _axes(panel, title)
        drawn += [
            svg.line(panel.x(r.epoch), panel.top, panel.x(r.epoch), panel.top + panel.height, "limit")
            for r in rows
            if r.lost
        ]
    drawn.append(_line(error, [(row.epoch, 100 * row.train_error) for row in rows]))
    drawn += [_dot(error, row) for row in rows if row.test_error is not None]
    drawn.append(_line(alive, [(row.epoch, row.alive - len(row.taken_out)) for row in rows]))
    drawn.append(_line(rate, [(row.epoch, row.rate) for row in rows]))
    bottom = rate.top + rate.height
    drawn += [svg.label(rate.x(at), bottom + 16, f"{at:.0f}", "tick middle") for at in _epochs(last)]
    drawn.append(svg.label((_LEFT + width - _RIGHT) / 2, bottom + 32, "epoch", "tick middle"))
    return svg.picture(ident, width, bottom + 38, "Error, blocks and learning rate by epoch", describe(rows), *drawn)


def describe(rows: Sequence[EpochRow]) -> str:
    """The picture in words."""
    first, last = rows[0], rows[-1]
    test = next((row.test_error for row in reversed(rows) if row.test_error is not None), None)
    seen = f", on test {numbers.percent(test)}" if test is not None else ""
    gone = [f"{len(row.taken_out)} after epoch {row.epoch}" for row in rows if row.taken_out]
    losses = f" Blocks taken out: {', '.join(gone)}." if gone else " No block was taken out."
    return (
        f"Training error from {numbers.percent(first.train_error)} in epoch 1 to {numbers.percent(last.train_error)} "
        f"in epoch {last.epoch}{seen}.{losses}"
    )


def _least(rows: Sequence[EpochRow]) -> float:
    positive = [100 * e for row in rows for e in (row.train_error, row.test_error) if e is not None and e > 0]
    return min(positive, default=1.0)


def _epochs(last: int) -> list[float]:
    return [1.0, *(value for value in ticks(1, last, 7) if value == int(value) and value > 1)]


def _axes(panel: Panel, title: str) -> list[svg.Markup]:
    drawn = [svg.label(_LEFT, panel.top - 10, title, "soft")]
    for place, text in panel.scale.labels():
        y = panel.top + panel.height * (1 - place)
        drawn.append(svg.line(_LEFT, y, panel.width - _RIGHT, y, "grid"))
        drawn.append(svg.label(_LEFT - 8, y + 4, text, "tick end"))
    return drawn


def _line(panel: Panel, points: Sequence[tuple[float, float]]) -> svg.Markup:
    finite = [(at, value) for at, value in points if math.isfinite(value)]
    corners = " ".join(f"{panel.x(at):.1f},{panel.y(value):.1f}" for at, value in finite)
    return svg.tag("polyline", points=corners, class_="curve")


def _dot(panel: Panel, row: EpochRow) -> svg.Markup:
    error = row.test_error or 0.0
    text = f"epoch {row.epoch}: test error {numbers.percent(error)}, {row.alive} blocks alive"
    return svg.group(
        svg.tag("title", text),
        svg.tag("circle", cx=panel.x(row.epoch), cy=panel.y(100 * error), r=2.6, class_="dot back"),
    )
