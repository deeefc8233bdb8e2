"""Divergence and training loss over the steps of a recovery, with the cut it began with and the weights it kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.record import Recovery
from shoal.report import front_plot, numbers, scales, svg

_LEFT, _RIGHT, _HEAD, _GAP, _FOOT = 52.0, 14.0, 46.0, 48.0, 40.0
_TALL, _LOW, _INSET, _ROOMY = 190.0, 80.0, 8.0, 600.0

Seen = list[tuple[int, float]]


@dataclass(frozen=True)
class Panel:
    """One set of axes: where it lies, and how steps and values land in it."""

    top: float
    height: float
    width: float
    last: int
    scale: scales.Logarithmic

    @property
    def bottom(self) -> float:
        """The row of the lower edge."""
        return self.top + self.height

    @property
    def right(self) -> float:
        """The column where the axes end."""
        return self.width - _RIGHT

    def x(self, step: float) -> float:
        """The pixel column of a step."""
        return _LEFT + _INSET + (self.right - _LEFT - 2 * _INSET) * step / max(self.last, 1)

    def y(self, value: float) -> float:
        """The pixel row of a value."""
        return self.top + self.height * (1 - self.scale.at(value))


def plot(recovery: Recovery, width: float, ident: str) -> str:
    """The divergence above, the training loss below where there is one; empty text without a look after the first step.

    Args:
        recovery: whose curve is drawn; looks without a number are left out.
        width: in pixels.
        ident: prefix of the ids inside, unique on the page.
    """
    seen, losses = divergences(recovery), _losses(recovery)
    ends = (recovery.divergence_before, recovery.divergence_after)
    if not any(step for step, _ in seen) or not all(map(math.isfinite, ends)):
        return ""
    last = max(recovery.steps, seen[-1][0])
    scale = scales.logarithmic([value for _, value in seen] + list(ends))
    above = Panel(_HEAD, _TALL, width, last, scale)
    drawn = _divergence(recovery, seen, above)
    lowest = above
    if losses:
        lowest = Panel(above.bottom + _GAP, _LOW, width, last, scales.logarithmic([loss for _, loss in losses]))
        drawn += [svg.label(0, lowest.top - 12, "Training loss, logarithmic", "soft"), *_axes(lowest)]
        drawn.append(_line(lowest, losses))
    drawn += _steps(lowest)
    height = lowest.bottom + _FOOT
    return svg.picture(ident, width, height, "Divergence on validation over the steps", describe(recovery), *drawn)


def divergences(recovery: Recovery) -> Seen:
    """Step and divergence of every look that has one."""
    return [(one.step, one.divergence) for one in recovery.curve if one.divergence is not None and _is(one.divergence)]


def _losses(recovery: Recovery) -> Seen:
    return [(one.step, one.loss) for one in recovery.curve if one.loss is not None and _is(one.loss)]


def _is(value: float) -> bool:
    return math.isfinite(value) and value >= 0


def describe(recovery: Recovery) -> str:
    """The picture in words."""
    seen, losses = divergences(recovery), _losses(recovery)
    step, most = max(seen, key=lambda one: one[1])
    before, after = numbers.significant(recovery.divergence_before), numbers.significant(recovery.divergence_after)
    highest = f", at most {numbers.significant(most)} at step {numbers.count(step)}" if step else ""
    loss = ""
    if losses:
        ends = [numbers.significant(value) for _, value in (losses[0], losses[-1])]
        loss = f" Training loss from {ends[0]} to {ends[1]}."
    return (
        f"Divergence on validation from {before} nats after the cut{highest}, to {after} nats of the weights that were "
        f"kept, those of step {numbers.count(recovery.kept_step)}; {numbers.count(recovery.steps)} steps.{loss}"
    )


def _divergence(recovery: Recovery, seen: Seen, panel: Panel) -> list[svg.Markup]:
    start = panel.y(recovery.divergence_before)
    kept = panel.x(recovery.kept_step), panel.y(recovery.divergence_after)
    said = f"What came out, of step {numbers.count(recovery.kept_step)}\n{_nats(recovery.divergence_after)}"
    return [
        svg.label(0, 16, "Divergence on validation", "strong"),
        svg.label(0, 33, "mean KL, nats, logarithmic", "soft"),
        *_axes(panel),
        svg.line(_LEFT, start, panel.right, start, "limit"),
        _line(panel, seen),
        *(_look(panel, *one) for one in seen),
        svg.group(svg.tag("title", said), *front_plot.kept_mark(*kept)),
    ]


def _look(panel: Panel, step: int, value: float) -> svg.Markup:
    return svg.group(
        svg.tag("title", f"Step {numbers.count(step)}\n{_nats(value)}"),
        svg.tag("circle", cx=panel.x(step), cy=panel.y(value), r=2.6, class_="dot"),
    )


def _nats(value: float) -> str:
    return f"{numbers.significant(value)} nats"


def _axes(panel: Panel) -> list[svg.Markup]:
    drawn = []
    for place, text in panel.scale.labels():
        y = panel.top + panel.height * (1 - place)
        drawn.append(svg.line(_LEFT, y, panel.right, y, "grid"))
        drawn.append(svg.label(_LEFT - 8, y + 4, text, "tick end"))
    return [*drawn, svg.line(_LEFT, panel.bottom, panel.right, panel.bottom, "zero")]


def _line(panel: Panel, points: Sequence[tuple[int, float]]) -> svg.Markup:
    corners = " ".join(f"{panel.x(step):.1f},{panel.y(value):.1f}" for step, value in points)
    return svg.tag("polyline", points=corners, class_="curve")


def _steps(panel: Panel) -> list[svg.Markup]:
    about = 8 if panel.width >= _ROOMY else 4
    whole = [at for at in scales.ticks(0, panel.last, about) if at == int(at)]
    drawn = [svg.label(panel.x(at), panel.bottom + 16, numbers.count(int(at)), "tick middle") for at in whole]
    return [*drawn, svg.label((_LEFT + panel.right) / 2, panel.bottom + 33, "steps", "tick middle")]


def legend() -> list[tuple[str, str]]:
    """Every sign with its meaning."""
    curve = [svg.line(1, 11, 21, 11, "curve"), svg.tag("circle", cx=11, cy=11, r=2.6, class_="dot")]
    return [
        (svg.icon(*curve), "the network as it learned, a dot a look"),
        (svg.icon(svg.line(1, 11, 21, 11, "limit")), "as it was cut"),
        (svg.icon(*front_plot.kept_mark(11, 11)), "what came out"),
    ]
