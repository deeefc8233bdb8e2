"""The tables of recovery.py as Markdown, written into a page between two comments.

    python benchmarks/recovery_page.py results/recovery-resnet56-0.6.json ... --page docs/figures.md

One table for each file of results, under the name of the file; what stands between `<!-- recovery -->` and
`<!-- /recovery -->` is replaced. Drops are in points, positive = worse.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rivals.recovered import WAYS
from rivals.table import not_reached

from shoal.files.writing import write_text

BEGIN, END = "<!-- recovery -->", "<!-- /recovery -->"
NAMES = {
    "shoal": "**Shoal**",
    "small": "the small network as it is",
    "small-distil": "the small network, distilled",
    "influence": "block influence",
    "tinyfusion": "TinyFusion's gates",
    "practise": "PRACTISE, its own tuning",
    "practise-distil": "PRACTISE's cut",
    "last-k": "the last blocks",
    "uniform": "evenly spaced blocks",
    "greedy": "greedy removal",
    "width": "width by magnitude",
    "taylor": "width by Taylor",
    "scratch": "Shoal's network from scratch",
}
_PARTS = {"data": "test", "also": "JPEG"}
_HEAD = (
    "| cut | share | before: test, JPEG | after: test | after: JPEG | agreement JPEG | KL JPEG"
    " | behind Shoal on JPEG: top-1, agreement, KL |\n|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    """Read the results, and write the tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--page", type=Path, required=True)
    args = parser.parse_args()
    write_text(args.page, with_tables(args.page.read_text(encoding="utf-8"), args.results))


def with_tables(page: str, results: Sequence[Path]) -> str:
    """The page with the tables of these files in the place of those it has."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"error: the page has no place for tables. Write {BEGIN} and {END} into it.")
    documents = [(path.name, json.loads(path.read_text(encoding="utf-8"))) for path in results]
    tables = "\n\n".join("\n".join(table(name, document)) for name, document in documents)
    return f"{before}{BEGIN}\n{tables}\n{END}{after}"


def table(name: str, document: dict[str, Any]) -> Iterator[str]:
    """The lines of one file's table."""
    precision = document["distillation"].get("precision", "fp32")
    mixed = ", mixed precision" if precision == "bf16" else ""
    yield f"`{name}`: {document['budget']} each{mixed}.{_tuning(document.get('tuned', {}))}\n"
    yield _HEAD
    for row in document["points"]:
        for index, (method, cell) in enumerate(row["cells"].items()):
            point = f"**{row['point']:g}** " if index == 0 else ""
            yield f"| {point}{NAMES[method]} | {' | '.join(_figures(row, method, cell))} |"


def _tuning(tuned: dict[str, Any]) -> str:
    """What the short trials chose for each method."""
    if not tuned:
        return ""
    values = ", ".join(f"{NAMES[method].strip('*')} {found['value']:g}" for method, found in tuned.items())
    return f" Tuned (weight of the features; PRACTISE's own: rate): {values}."


def _figures(row: dict[str, Any], method: str, cell: dict[str, Any]) -> list[str]:
    if not cell["reached"]:
        return [not_reached(cell), *[""] * 6]
    quality = cell["quality"]
    jpeg = quality.get("also", quality["data"])
    before = cell["before"] or {}
    return [
        f"{row['together']['shares'][WAYS[method].cut]:.3f}" + ("" if cell["meets_point_together"] else " (!)"),
        ", ".join(f"{100 * before[part]['top1_drop']:.1f}" for part in _PARTS if part in before) or "–",
        *(_drop(quality.get(part)) for part in _PARTS),
        f"{100 * jpeg['agreement']:.1f}",
        f"{jpeg['kl']:.3f}",
        _behind((cell.get("versus_shoal") or {}).get("also")),
    ]


def _drop(quality: dict[str, Any] | None) -> str:
    if quality is None:
        return ""
    low, high = quality["top1_drop_interval"]
    return f"{100 * quality['top1_drop']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _behind(versus: dict[str, Any] | None) -> str:
    """Positive: behind. An interval that holds zero is within noise."""
    if versus is None:
        return ""
    top1, agreement = versus["top1"], versus["agreement"]
    low, high = versus["kl_above_interval"]
    return ", ".join(
        [
            *(_interval(100 * part["behind"], *(100 * bound for bound in part["behind_interval"]), places=1)
              for part in (top1, agreement)),
            _interval(versus["kl_above"], low, high, places=3),
        ]
    )  # fmt: skip


def _interval(value: float, low: float, high: float, *, places: int) -> str:
    return f"{value:.{places}f} ({low:.{places}f} to {high:.{places}f})"


if __name__ == "__main__":
    main()
