"""The results with recovery as a table for the terminal: a row for each method, point and test part."""

from collections.abc import Iterator
from typing import Any

from rivals.recovered import WAYS
from rivals.table import HEADINGS, figures, not_reached, percent


def lines(document: dict[str, Any]) -> Iterator[str]:
    """The rows; `before` is the cut without recovery, `vs shoal` says where the method is, seen from Shoal's."""
    yield f"recovered for {document['budget']} each"
    yield f"{'point':<6}{'method':<17}{'share':>8}{'steps':>7}  {'data':<6}{'before':>7} {HEADINGS}  vs shoal"
    for row in document["points"]:
        for method, cell in row["cells"].items():
            yield from _rows(row, method, cell)


def _rows(row: dict[str, Any], method: str, cell: dict[str, Any]) -> Iterator[str]:
    head = f"{row['point']:<6g}{method:<17}"
    if not cell["reached"]:
        yield f"{head}{'-':>8}  {not_reached(cell)}"
        return
    share = row["together"]["shares"][WAYS[method].cut]
    mark = " " if cell["meets_point_together"] else "!"
    head += f"{100 * share:>6.1f} %{mark}{cell['recovery']['steps']:>6}"
    for name, quality in cell["quality"].items():
        before = cell["before"][name]["top1"] if cell["before"] else None
        yield f"{head}  {name:<6}{percent(before)} {figures(quality)}  {_versus(cell['versus_shoal'], name)}".rstrip()
        head = " " * len(head)


def _versus(versus: dict[str, Any] | None, name: str) -> str:
    if versus is None:
        return ""
    comparison = versus[name]
    text = f"KL {comparison['kl_verdict']} ({comparison['kl_above']:+.4f})"
    text += f", agreement {comparison['agreement']['verdict']}"
    if "top1" not in comparison:
        return text
    low, high = comparison["top1"]["behind_interval"]
    return f"top-1 {comparison['top1']['verdict']} [{100 * low:+.2f}, {100 * high:+.2f}], {text}"
