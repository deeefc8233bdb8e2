"""The rows as a table in Markdown, with a line that sums them up."""

import re
from typing import Any

COUNTED = ("trace", "scan", "remove", "replace", "save", "load")
_LONGEST = 150
_SOURCES = ("torchvision", "timm", "transformers", "diffusers")


def has_chain(row: dict[str, Any]) -> bool:
    """Whether the network has residual blocks at all."""
    return "refuse" not in row["cells"]


def is_whole(row: dict[str, Any]) -> bool:
    """Whether every step that counts was done; ONNX and units count where they were tried.

    A network without a chain is whole if it is refused with a reason.
    """
    cells = row["cells"]
    if not has_chain(row):
        return cells["refuse"]["ok"] is True and bool(cells["trace"]["said"])
    tried = [name for name in ("unit", "onnx") if cells.get(name, {}).get("ok") is not None]
    return all(cells.get(name, {}).get("ok") is True for name in (*COUNTED, *tried))


def summary(rows: list[dict[str, Any]]) -> str:
    """How many rows with a chain are whole, in all and of each source; and how many without are refused."""
    chains, others = [row for row in rows if has_chain(row)], [row for row in rows if not has_chain(row)]
    parts = [_share(source, [row for row in chains if row["key"].startswith(f"{source}:")]) for source in _SOURCES]
    said = f"Networks with a residual chain: {_share('', chains)} ({', '.join(part for part in parts if part)})"
    if others:
        said += f"; {len(others)} have no chain, and {sum(map(is_whole, others))} of these are refused with the reason"
    return said


def _share(name: str, rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    whole = sum(map(is_whole, rows))
    return f"{name} {whole} of {len(rows)} whole, {100 * whole / len(rows):.0f} %".strip()


def page(document: dict[str, Any], steps: tuple[str, ...]) -> str:
    """The page for the documentation."""
    rows, machine = document["rows"], document["machine"]
    versions = {"torch": machine["torch"], **machine["libraries"]}
    chains, others = [row for row in rows if has_chain(row)], [row for row in rows if not has_chain(row)]
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
        "| network | task | blocks | " + " | ".join(steps[1:]) + " |",
        "|---" * (len(steps) + 2) + "|",
        *(_line(row, steps) for row in chains),
    ]
    return "\n".join([*lines, *_refusals(others)]) + "\n"


def _refusals(rows: list[dict[str, Any]]) -> list[str]:
    """The networks without a chain, with what Shoal says of them."""
    if not rows:
        return []
    lines = [
        "",
        "## No residual chain: Shoal says so",
        "",
        "| network | what the trace says | removal of a block |",
        "|---" * 3 + "|",
    ]
    for row in rows:
        refused = row["cells"]["refuse"]
        said = "refused, with that reason" if refused["ok"] else f"✗ {refused['said'][:_LONGEST]}"
        lines.append(f"| {row['key']} | {row['cells']['trace']['said'].replace('|', '/')} | {said} |")
    return lines


def _line(row: dict[str, Any], steps: tuple[str, ...]) -> str:
    cells = [_cell(name, row["cells"].get(name)) for name in steps]
    return (
        f"| {'**' if not is_whole(row) else ''}{row['key']}{'**' if not is_whole(row) else ''} | "
        f"{row.get('task') or '–'} | " + " | ".join(cells) + " |"
    )


def _cell(name: str, cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "–"
    said = re.sub(r"\x1b\[\d*m", "", cell["said"]).replace("|", "/").replace("\n", " ")  # without a terminal's colours
    said = said if len(said) <= _LONGEST else said[: _LONGEST - 1] + "…"
    if cell["ok"] is True:
        across = name == "replace" and "change of stage" in said
        return said if name in ("trace", "onnx", "unit") else ("ok, across stages" if across else "ok")
    return said if cell["ok"] is None else f"✗ {said}"
