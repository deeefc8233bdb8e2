"""Matplotlib figures as SVG for a page: coloured by its style sheet, with text alternatives, hover titles and links.

Matplotlib scales, ticks and draws. Its artists are then taken out of its SVG one by one, without colours and fonts, and
put together again with CSS classes, so that one drawing serves the light and the dark colour scheme, and print.
Matplotlib is imported when the first plot is drawn.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self
from xml.etree import ElementTree

from shoal.report import numbers

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.transforms import Transform

# A plot for a desk and for paper, and one for a phone; the style sheet shows one of them.
WIDTHS = {"wide": 1000.0, "narrow": 340.0}
_MAX_DECADES = 6
# A value as good as zero: the edge of a logarithmic axis below it would not be a number any more.
_TINY = 1e-300
# A plot wider than this has room for more ticks along a count.
_ROOMY = 400.0
# Below this ratio of the largest to the smallest value, a linear axis shows them all.
_SPANS_DECADES = 30.0
_RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "shoal",
    "text.parse_math": False,
    "path.simplify": False,
    "lines.color": "black",
}
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"

# An artist and its CSS classes.
Mark = tuple["Artist", str]


@dataclass(frozen=True)
class _Group:
    """Marks that belong together: their hover title, and what they link to."""

    marks: Sequence[Mark]
    title: str
    href: str
    focusable: bool


class Plot:
    """One figure, measured in pixels from its upper left corner; to be used in a `with` statement."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self._groups: list[_Group] = []
        self._settings = ExitStack()

    def __enter__(self) -> Self:
        import matplotlib
        from matplotlib.figure import Figure

        # The user's matplotlibrc changes nothing here, and nothing here changes the user's settings.
        self._settings.enter_context(matplotlib.rc_context())
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        self._figure = Figure(figsize=(self.width / 72, self.height / 72), dpi=72)
        return self

    def __exit__(self, *error: object) -> None:
        self._settings.close()

    def axes(self, left: float, top: float, right: float, bottom: float) -> "Axes":
        """Empty axes with these edges."""
        size = (right - left) / self.width, (bottom - top) / self.height
        axes = self._figure.add_axes((left / self.width, 1 - bottom / self.height, *size))
        axes.set_autoscale_on(False)
        axes.tick_params(which="both", length=0, pad=6)
        return axes

    def add(self, *marks: Mark, title: str = "", href: str = "", focusable: bool = True) -> None:
        """Draw marks as one group, above those added before.

        Args:
            marks: artists of this figure with their CSS classes.
            title: what is shown when the pointer rests on them.
            href: what they link to.
            focusable: whether the keyboard stops at the link.
        """
        for i, (artist, _) in enumerate(marks):
            artist.set_gid(f"mark-{len(self._groups)}-{i}")
            artist.set_clip_on(False)
        self._groups.append(_Group(marks, title, href, focusable))

    def text(self, x: float, y: float, text: str, style: str, anchor: str = "left", rotation: float = 0.0) -> None:
        """Write a line of text at a point in pixels."""
        place = x / self.width, 1 - y / self.height
        artist = self._figure.text(
            *place, _printable(text), ha=anchor, va="baseline", rotation=rotation, rotation_mode="anchor", fontsize=11
        )
        self.add((artist, style))

    def line(self, axes: "Axes", points: Iterable[tuple[float, float]], style: str) -> Mark:
        """A line through points of the axes."""
        return axes.plot(*zip(*points, strict=True), color="black")[0], style

    def marker(self, axes: "Axes", x: float, y: float, size: float, style: str, shape: str = "o") -> Mark:
        """A marker of this diameter: a circle, or a diamond (`D`)."""
        side = size / math.sqrt(2) if shape == "D" else size
        return axes.plot([x], [y], marker=shape, markersize=side, color="black", linestyle="none")[0], style

    def final_marker(self, axes: "Axes", x: float, y: float) -> tuple[Mark, Mark]:
        """The sign of the final network: a point in a ring."""
        return self.marker(axes, x, y, 15, "built"), self.marker(axes, x, y, 7, "built chosen")

    def pixel(self, axes: "Axes", x: float, y: float) -> tuple[float, float]:
        """Where a point of the axes is, in pixels."""
        across, up = axes.transData.transform((x, y))
        return float(across), self.height - float(up)

    def point(self, axes: "Axes", x: float, y: float) -> tuple[float, float]:
        """The point of the axes at a place in pixels."""
        across, up = axes.transData.inverted().transform((x, self.height - y))
        return float(across), float(up)

    def scale(
        self,
        axes: "Axes",
        which: Literal["x", "y"],
        values: Iterable[float],
        *,
        logarithmic: bool | None = None,
        label: Callable[[float], str] = numbers.tick,
        nticks: int = 4,
    ) -> list[float]:
        """Scale an axis to values, and draw its ticks with a line through each.

        Args:
            axes: whose axis it is.
            which: of the two axes.
            values: that have a place on it; those that are not finite are left out.
            logarithmic: whether the axis is; by default it is where the values span decades.
            label: writes a tick.
            nticks: about how many ticks there are.

        Returns:
            The ticks.
        """
        finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        axis, set_scale = (axes.xaxis, axes.set_xscale) if which == "x" else (axes.yaxis, axes.set_yscale)
        if not (_spans_decades(finite) if logarithmic is None else logarithmic and max(finite) > _TINY):
            limits = _with_margin(axis.get_transform(), finite)
            ticks = linear_ticks(*limits, nticks)
        else:
            high = max(finite)
            low = max(min(value for value in finite if value > _TINY), high / 10.0**_MAX_DECADES)
            if min(finite) >= low:
                set_scale("log", nonpositive="clip")
                limits = _with_margin(axis.get_transform(), [low, high])
                ticks = _log_ticks(*limits, nticks)
            else:
                # Zero, and what is too small for the axis, has a place of its own below the logarithmic part.
                set_scale("symlog", linthresh=low, linscale=0.4)
                limits = _with_margin(axis.get_transform(), [0.0, high])
                ticks = [0.0, *_log_ticks(low, limits[1], nticks)]
        self._draw_ticks(axes, which, limits, {tick: label(tick) for tick in ticks})
        self.add(*((line, "grid") for line in axis.get_gridlines()))
        return ticks

    def count_scale(self, axes: "Axes", first: int, last: int, *, labels: bool = True) -> None:
        """Scale the x axis to a count, with ticks at whole numbers and no lines."""
        ticks = linear_ticks(first, last, 9 if self.width > _ROOMY else 5, integers=True) or [first]
        limits = _with_margin(axes.xaxis.get_transform(), [first, last], 0.015)
        self._draw_ticks(axes, "x", limits, {tick: numbers.count(round(tick)) if labels else "" for tick in ticks})

    def _draw_ticks(
        self, axes: "Axes", which: Literal["x", "y"], limits: tuple[float, float], labels: dict[float, str]
    ) -> None:
        axis = axes.xaxis if which == "x" else axes.yaxis
        (axes.set_xlim if which == "x" else axes.set_ylim)(*limits)
        axis.set_ticks(list(labels), labels=list(labels.values()))
        axis.set_ticks([], minor=True)
        axis.grid(visible=True)
        self.add(*((text, "tick") for text in axis.get_ticklabels()))

    def frame(self, axes: "Axes", *sides: str) -> None:
        """Draw the lines along these sides of the axes."""
        self.add(*((axes.spines[side], "zero") for side in sides))

    def svg(self, ident: str, title: str, desc: str, role: Literal["img", "group"] = "img") -> str:
        """What was added, as one SVG with its name and description for those who do not see it.

        Args:
            ident: unique on the page; every id inside begins with it.
            title: the name of the picture.
            desc: what it shows, in words.
            role: `group` for a plot with links, which would be hidden inside an image.
        """
        from matplotlib.backends.backend_svg import FigureCanvasSVG

        buffer = io.StringIO()
        with warnings.catch_warnings():
            # The browser has glyphs that matplotlib's own font lacks.
            warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
            FigureCanvasSVG(self._figure).print_svg(buffer, metadata=_NO_METADATA)
        drawn = {group.get("id", ""): group for group in ElementTree.fromstring(buffer.getvalue()).iter(f"{_SVG}g")}
        size = {"width": f"{self.width:g}", "height": f"{self.height:g}"}
        root = ElementTree.Element(
            "svg",
            {
                "role": role,
                "aria-labelledby": f"{ident}-title {ident}-desc",
                "viewBox": f"0 0 {self.width:g} {self.height:g}",
                **size,
            },
        )
        for name, text in (("title", title), ("desc", desc)):
            ElementTree.SubElement(root, name, {"id": f"{ident}-{name}"}).text = _printable(text)
        for i, group in enumerate(self._groups):
            root.append(_group(group, i, drawn, ident))
        return ElementTree.tostring(root, encoding="unicode")


def _group(group: _Group, index: int, drawn: dict[str, ElementTree.Element], ident: str) -> ElementTree.Element:
    focus = {} if group.focusable else {"tabindex": "-1"}
    element = ElementTree.Element("a", {"href": group.href, **focus}) if group.href else ElementTree.Element("g")
    if group.title:
        ElementTree.SubElement(element, "title").text = _printable(group.title)
    for i, (_, style) in enumerate(group.marks):
        mark = ElementTree.SubElement(element, "g", {"class": style})
        mark.extend(_plain(child, ident) for child in drawn.get(f"mark-{index}-{i}", ()))
    return element


def _plain(element: ElementTree.Element, ident: str) -> ElementTree.Element:
    """An element of matplotlib's SVG without its style, namespaces and superfluous digits, with ids of this page."""
    attributes = {}
    for key, value in element.attrib.items():
        if key == "id":
            attributes["id"] = f"{ident}-{value}"
        elif key == f"{_XLINK}href":
            attributes["href"] = f"#{ident}-{value.removeprefix('#')}"
        elif key == "style":
            anchor = re.search(r"text-anchor: *(\w+)", value)
            attributes |= {"text-anchor": anchor[1]} if anchor else {}
        elif key != "clip-path" and not value.startswith("rotate(-0 "):
            attributes[key] = _rounded(value)
    plain = ElementTree.Element(element.tag.removeprefix(_SVG), attributes)
    plain.text = (element.text or "").strip() or None
    plain.extend(_plain(child, ident) for child in element)
    return plain


def _rounded(value: str) -> str:
    shorter = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), value)
    return " ".join(shorter.split())


def _printable(text: str) -> str:
    """Text without the characters that XML does not allow."""
    return "".join(char if char.isprintable() or char == "\n" else " " for char in text)


def _spans_decades(values: Sequence[float]) -> bool:
    positive = [value for value in values if value > _TINY]
    return min(values) >= 0 and bool(positive) and max(positive) / min(positive) >= _SPANS_DECADES


def _with_margin(transform: "Transform", values: Sequence[float], margin: float = 0.05) -> tuple[float, float]:
    """The smallest and the largest value, moved apart by a margin on the scale of the axis."""
    low, high = transform.transform([min(values), max(values)])
    apart = margin * (high - low) if high > low else max(0.5, 1e-6 * abs(high))
    first, last = transform.inverted().transform([low - apart, high + apart])
    return float(first), float(last)


def linear_ticks(low: float, high: float, count: int, *, integers: bool = False) -> list[float]:
    """About `count` round numbers from `low` to `high`."""
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(nbins=count, steps=[1, 2, 5, 10], integer=integers).tick_values(low, high)
    step = float(ticks[1] - ticks[0])
    # 0.30000000000000004 is no label, and a tiny remainder would not count as zero.
    rounded = [0.0 if abs(tick) < 1e-6 * step else float(f"{tick:.12g}") for tick in ticks]
    return [tick for tick in rounded if low <= tick <= high]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    """Powers of ten, and round numbers between them where there is room."""
    from matplotlib.ticker import LogLocator

    for digits in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        ticks = LogLocator(subs=digits, numticks=count + 2).tick_values(low, high)
        inside = [float(tick) for tick in ticks if low <= tick <= high]
        if 1 < len(inside) <= count + 2:
            return inside
    # Within a factor of two or so, they may all lie outside.
    return linear_ticks(low, high, count)
