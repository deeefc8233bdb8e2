"""The results as a table for the terminal: a row for each method and point."""

from collections.abc import Iterator
from typing import Any


def lines(document: dict[str, Any]) -> Iterator[str]:
    """The rows; what stands under `vs shoal` says where the method is, seen from Shoal's network at the same point."""
    figures = f"{'top-1':>7}  {'drop [95 %]':<24}{'agree':>7}{'KL':>9}"
    yield f"{'point':<6}{'method':<11}{'share':>8}  {'data':<6}{figures}  vs shoal"
    for row in document["points"]:
        for method, cell in row["cells"].items():
            yield from _rows(row, method, cell)


def _rows(row: dict[str, Any], method: str, cell: dict[str, Any]) -> Iterator[str]:
    head = f"{row['point']:<6g}{method:<11}"
    if not cell["reached"]:
        fastest = cell["fastest_share"]
        reach = f"fastest {100 * fastest:.1f} %" if fastest is not None else cell["why"]
        yield f"{head}{'-':>8}  not reached: {reach}"
        return
    share = row["together"]["shares"][method]
    mark = " " if cell["meets_point_together"] else "!"
    for name, found in cell["quality"].items():
        yield f"{head}{100 * share:>6.1f} %{mark} {name:<6}{_figures(found)}  {_versus(cell.get('versus_shoal'), name)}"
        head = " " * len(head)


def _figures(found: dict[str, Any]) -> str:
    top1, drop = f"{'-':>7}", "-"
    if found["top1"] is not None:
        low, high = found["top1_drop_interval"]
        top1 = f"{100 * found['top1']:>7.2f}"
        drop = f"{100 * found['top1_drop']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"
    return f"{top1}  {drop:<24}{100 * found['agreement']:>7.2f}{found['kl']:>9.4f}"


def _versus(versus: dict[str, Any] | None, name: str) -> str:
    if versus is None or name not in versus:
        return ""
    found = versus[name]
    said = f"KL {found['kl_verdict']} ({found['kl_above']:+.4f})"
    if "top1" not in found:
        return said
    low, high = found["top1"]["behind_interval"]
    return f"top-1 {found['top1']['verdict']} [{100 * low:+.2f}, {100 * high:+.2f}], {said}"
