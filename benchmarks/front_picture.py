"""The front of a network before and after recovery as one picture, from the results of recovery.py.

    python benchmarks/front_picture.py results/recovery-resnet56-0.?-curve.json --before results/frontier-resnet56.json
        --data also --out docs/front-resnet56.svg

Left the cuts (of `frontier.py` where its results are given: a plan that was raced has learned already), right cuts that
were recovered: top-1 against the measured speed-up. The bars are 95 % intervals of the
paired difference from the original, whose accuracy is the dashed line. Each method is a line; where files differ in the
budget of recovery, it has one for each, and those of other budgets than the first file's are hollow and say theirs.
"""

import argparse
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from rivals.recovered import WAYS

from shoal.files.writing import write_text

matplotlib.use("svg")

NAMES = {
    "shoal": "Shoal",
    "small": "ResNet-20 as it is",
    "small-distil": "ResNet-20, distilled",
    "influence": "block influence",
    "tinyfusion": "TinyFusion's gates",
    "practise": "PRACTISE",
    "practise-distil": "PRACTISE's cut",
    "last-k": "last blocks",
    "uniform": "every n-th block",
    "greedy": "greedy removal",
    "taylor": "width by Taylor",
    "width": "width by magnitude",
    "scratch": "Shoal's network from scratch",
}
# Colours that are readable on white and on black.
_COLOURS = (
    "#e4572e",
    "#2e86ab",
    "#17a398",
    "#a26769",
    "#8e6c8a",
    "#c9a227",
    "#6b8e23",
    "#7d8597",
    "#d1495b",
    "#3d7ea6",
    "#5c4742",
    "#b56576",
    "#355070",
)
_MARKERS = "oDs^vP*Xd<>ph"
_INK = "#7a7a7a"
_SIZE = (10.0, 4.4)
# Networks this far below the original are cut off: they are no use to anybody.
_MOST = 75.0
_ABOVE = 3.0
_NO_METADATA = ("Date", "Creator", "Format", "Type")


@dataclass(frozen=True)
class Point:
    """A network of a method: its share of the latency, and in points its accuracy and the drop with an interval."""

    share: float
    top1: float
    drop: float
    low: float
    high: float

    @property
    def speedup(self) -> float:
        """How many times faster than the original."""
        return 1 / self.share

    @property
    def original(self) -> float:
        """The original's accuracy on the same samples."""
        return self.top1 + self.drop


# A method, and the budget of its recovery where that is not the usual one.
Lines = dict[tuple[str, str], list[Point]]


def main() -> None:
    """Read the results, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--before", type=Path, nargs="*", help="results of frontier.py, for the cuts on the left")
    parser.add_argument("--data", default="also", help="the test part: data or also")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    documents, cuts = (
        [json.loads(path.read_text(encoding="utf-8")) for path in paths] for paths in (args.results, args.before or [])
    )
    before = lines(cuts, args.data, "quality") if cuts else lines(documents, args.data, "before")
    write_text(args.out, drawn(before, lines(documents, args.data, "quality")))


def lines(documents: Sequence[dict[str, Any]], data: str, state: str) -> Lines:
    """The points of each method, fastest first; `state`: before (the cut) or quality (recovered)."""
    points: Lines = {}
    for document in documents:
        budget = "" if document.get("budget") == documents[0].get("budget") else document["budget"]
        for row in document["points"]:
            for method, cell in row["cells"].items():
                quality = (cell.get(state) or {}).get(data)
                if not cell["reached"] or quality is None or quality["top1_drop"] is None:
                    continue
                share = row["together"]["shares"][WAYS[method].cut]
                low, high = (100 * bound for bound in quality["top1_drop_interval"])
                points.setdefault((method, budget), []).append(
                    Point(share, 100 * quality["top1"], 100 * quality["top1_drop"], low, high)
                )
    order = sorted(points, key=lambda key: (key[1], list(NAMES).index(key[0])))
    return {key: sorted(points[key], key=lambda point: point.share) for key in order}


def drawn(before: Lines, after: Lines) -> str:
    """The picture as SVG: transparent, its text as text."""
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "shoal",
        "font.family": "sans-serif",
        "font.size": 10,
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), _INK
        ),
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=_SIZE, facecolor="none", layout="constrained")
        panels = figure.subplots(1, 2)
        speedups = [point.speedup for points in (*before.values(), *after.values()) for point in points]
        for axes, title, methods in zip(panels, ("before recovery", "after recovery"), (before, after), strict=True):
            _panel(axes, title, methods)
            axes.set_xlim(min(speedups) - 0.1, max(speedups) + 0.1)
        panels[0].set_ylabel("top-1 accuracy, %")
        handles = {}
        for axes in panels:
            handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
        return _svg(figure)


def _panel(axes: Any, title: str, methods: Lines) -> None:
    axes.set_title(title)
    axes.set_facecolor("none")
    axes.set_xlabel("measured speed-up, times")
    axes.grid(visible=True, linewidth=0.4)
    points = [point for line in methods.values() for point in line]
    original = max((point.original for point in points), default=100.0)
    axes.axhline(original, color=_INK, linewidth=1.0, linestyle="--", label="the original")
    lowest = min((point.original - point.high for point in points), default=0.0)
    axes.set_ylim(max(original - _MOST, lowest - 1), original + _ABOVE)
    for (method, budget), points in methods.items():
        index = _style(method)
        errors = [[point.high - point.drop for point in points], [point.drop - point.low for point in points]]
        axes.errorbar(
            [point.speedup for point in points],
            [point.top1 for point in points],
            yerr=errors,
            label=f"{NAMES[method]}, {budget}" if budget else NAMES[method],
            color=_COLOURS[index],
            marker=_MARKERS[index],
            markerfacecolor="none" if budget else _COLOURS[index],
            linewidth=2.6 if method == "shoal" and not budget else 1.2,
            markersize=7 if method == "shoal" else 5,
            capsize=2,
            zorder=3 if method == "shoal" else 2,
        )


def _style(method: str) -> int:
    """The number of a method's colour and marker; Shoal's are nobody else's."""
    index = list(NAMES).index(method)
    return index and 1 + (index - 1) % (len(_COLOURS) - 1)


def _svg(figure: Figure) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata=dict.fromkeys(_NO_METADATA))
    text = stream.getvalue()
    return text[text.index("<svg") :]


if __name__ == "__main__":
    main()
