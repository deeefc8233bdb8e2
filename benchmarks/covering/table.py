"""The rows as a table in Markdown, with a line that sums them up."""

from typing import Any

COUNTED = ("trace", "scan", "remove", "replace", "save", "load")
_LONGEST = 150
_SOURCES = ("torchvision", "timm", "transformers")


def is_whole(row: dict[str, Any]) -> bool:
    """Whether every step that counts was done; ONNX and units count where they were tried."""
    cells = row["cells"]
    tried = [name for name in ("unit", "onnx") if cells.get(name, {}).get("ok") is not None]
    return all(cells.get(name, {}).get("ok") is True for name in (*COUNTED, *tried))


def summary(rows: list[dict[str, Any]]) -> str:
    """How many rows are whole, in all and of each source."""
    parts = [_share(source, [row for row in rows if row["key"].startswith(f"{source}:")]) for source in _SOURCES]
    return f"{_share('all', rows)} ({', '.join(part for part in parts if part)})"


def _share(name: str, rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    whole = sum(map(is_whole, rows))
    return f"{name} {whole} of {len(rows)} rows whole, {100 * whole / len(rows):.0f} %"


def page(document: dict[str, Any], steps: tuple[str, ...]) -> str:
    """The page for the documentation."""
    rows, machine = document["rows"], document["machine"]
    versions = {"torch": machine["torch"], **machine["libraries"]}
    lines = [
        "# Coverage",
        "",
        "Made by `python benchmarks/coverage.py`; do not edit. Random weights, two samples, CPU.",
        "What each column means stands at the top of that file.",
        "",
        f"**{summary(rows)}.**",
        "",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        "",
        "| network | blocks | " + " | ".join(steps[1:]) + " |",
        "|---" * (len(steps) + 1) + "|",
        *(_line(row, steps) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any], steps: tuple[str, ...]) -> str:
    cells = [_cell(name, row["cells"].get(name)) for name in steps]
    return (
        f"| {'**' if not is_whole(row) else ''}{row['key']}{'**' if not is_whole(row) else ''} | "
        + " | ".join(cells)
        + " |"
    )


def _cell(name: str, cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "–"
    said = cell["said"].replace("|", "/").replace("\n", " ")
    said = said if len(said) <= _LONGEST else said[: _LONGEST - 1] + "…"
    if cell["ok"] is True:
        across = name == "replace" and "change of stage" in said
        return said if name in ("trace", "onnx") else ("ok, across stages" if across else "ok")
    return said if cell["ok"] is None else f"✗ {said}"
