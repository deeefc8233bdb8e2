"""The results as a table for the terminal: a row for each method and point."""

from collections.abc import Iterator
from typing import Any

HEADINGS = f"{'top-1':>7}  {'drop [95 %]':<24}{'agree':>7}{'KL':>9}"


def lines(document: dict[str, Any]) -> Iterator[str]:
    """The rows; what stands under `vs shoal` says where the method is, seen from Shoal's network at the same point."""
    yield f"{'point':<6}{'method':<11}{'share':>8}  {'data':<6}{HEADINGS}  vs shoal"
    for row in document["points"]:
        for method, cell in row["cells"].items():
            yield from _rows(row, method, cell)


def _rows(row: dict[str, Any], method: str, cell: dict[str, Any]) -> Iterator[str]:
    head = f"{row['point']:<6g}{method:<11}"
    if not cell["reached"]:
        yield f"{head}{'-':>8}  {not_reached(cell)}"
        return
    share = row["together"]["shares"][method]
    mark = " " if cell["meets_point_together"] else "!"
    for name, quality in cell["quality"].items():
        versus = _versus(cell.get("versus_shoal"), name)
        yield f"{head}{100 * share:>6.1f} %{mark} {name:<6}{figures(quality)}  {versus}"
        head = " " * len(head)


def not_reached(cell: dict[str, Any]) -> str:
    """What a method that cannot get to a point has instead of figures."""
    fastest = cell["fastest_share"]
    return f"not reached: {f'fastest {100 * fastest:.1f} %' if fastest is not None else cell['why']}"


def percent(value: float | None) -> str:
    """Seven places."""
    return f"{'-':>7}" if value is None else f"{100 * value:>7.2f}"


def figures(quality: dict[str, Any]) -> str:
    """Top-1, what it lost with its interval, agreement and divergence, under their headings."""
    drop = "-"
    if quality["top1"] is not None:
        low, high = quality["top1_drop_interval"]
        drop = f"{100 * quality['top1_drop']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"
    return f"{percent(quality['top1'])}  {drop:<24}{100 * quality['agreement']:>7.2f}{quality['kl']:>9.4f}"


def _versus(versus: dict[str, Any] | None, name: str) -> str:
    if versus is None or name not in versus:
        return ""
    comparison = versus[name]
    text = f"KL {comparison['kl_verdict']} ({comparison['kl_above']:+.4f})"
    if "top1" not in comparison:
        return text
    low, high = comparison["top1"]["behind_interval"]
    return f"top-1 {comparison['top1']['verdict']} [{100 * low:+.2f}, {100 * high:+.2f}], {text}"
