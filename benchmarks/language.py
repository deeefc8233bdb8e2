"""Layers taken out of a decoder language model: Shoal and others on the same tokens, by document, with intervals.

    python benchmarks/language.py MODEL TEXTS --work WORK [--points 3,7,12] [--methods a,b] [--recover TOKENS]
        [--device cuda] [--out benchmarks/results/language-smollm2.json] [--docs docs/figures.md]

MODEL is a folder that transformers loads; TEXTS holds `calib.jsonl` and, held out, `heldout_prose.jsonl` and
`heldout_handbook.jsonl`, one document a line. `--calibration mixed` mixes other kinds of text into `calib.jsonl`, none
of them the held-out ones. A cell is finished when its file stands in WORK; the same command goes on
from there. Layers are chosen on the first `--choice` rows of 64 tokens of the calibration text, maps are fitted on
`--fit` rows of `--length` tokens of it and networks recovered on `--lessons` such rows, whatever the method.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from decoders import judge, methods, ours
from decoders.ground import Ground, cut_as_noted, rows_of, units_left
from decoders.recovering import recover_
from decoders.texts import calibration_file

METHODS = {
    "shoal-removal": ours.removal,
    "shoal-refitted": ours.refitted,
    "shoal-plan": ours.plan,
    "shoal-units": ours.units,
    "shoal-units-macs": ours.units_by_macs,
    "shoal-linear-attention": ours.linear_attention,
    "shortgpt": methods.shortgpt,
    "contiguous": methods.contiguous,
    "last": methods.last_layers,
    "sleb": methods.sleb,
    "blockpruner": methods.blockpruner,
    "replaceme": methods.replaceme,
    "replaceme-cosine": methods.replaceme_cosine,
    "linearpatch": methods.linearpatch,
    "streamline": methods.streamline,
}
TITLES = {
    "original": "original",
    "shoal-removal": "Shoal, `--remove`",
    "shoal-refitted": "Shoal, `--remove`, kept layers refitted",
    "shoal-plan": "Shoal, plan (`--depth`)",
    "shoal-units": "Shoal, plan by units (`--grain unit`)",
    "shoal-units-macs": "Shoal, plan by units (`--macs`)",
    "shoal-linear-attention": "Shoal, the same with linear attention",
    "shortgpt": "ShortGPT (block influence)",
    "contiguous": "contiguous span, by angle",
    "last": "last layers",
    "sleb": "SLEB (by perplexity)",
    "blockpruner": "BlockPruner (units)",
    "replaceme": "ReplaceMe, least squares",
    "replaceme-cosine": "ReplaceMe, cosine",
    "linearpatch": "LinearPatch",
    "streamline": "LLM-Streamline (one layer trained)",
}
SETS = ("prose", "handbook")
_BEGIN, _END = "<!-- language table -->", "<!-- end of language table -->"


def main() -> None:
    """Run what is missing, write down what there is."""
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    wanted = [(0, "original"), *((count, name) for count in args.points for name in args.methods)]
    ground: Bench | None = None
    for count, name in wanted:
        tokens = [0, args.recover] if args.recover and count else [0]
        missing = [each for each in tokens if not cell_file(args.work, name, count, each).exists()]
        if missing and not args.table_only:
            ground = ground or Bench(args)
            ground.measure(name, count, missing)
        for file in (cell_file(args.work, name, count, each) for each in tokens):
            if file.exists():
                perplexity = json.loads(file.read_text())["perplexity"]
                print(file.stem, {key: round(value, 2) for key, value in perplexity.items()}, flush=True)
    if args.time:
        (ground or Bench(args)).time_cells()
    every = {file.stem: json.loads(file.read_text()) for file in sorted(args.work.glob("*-[0-9]*.json"))}
    every = {stem: cell for stem, cell in every.items() if "perplexity" in cell}
    document = {"settings": settings(args), "cells": every}
    if args.out:
        args.out.write_text(written(document))
    lines = table(document)
    print("\n".join(lines))
    if args.docs:
        text = args.docs.read_text(encoding="utf-8")
        before, _, rest = text.partition(_BEGIN)
        args.docs.write_text("\n".join([before + _BEGIN, *lines, _END + rest.partition(_END)[2]]), encoding="utf-8")


def arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--points", type=lambda text: [int(part) for part in text.split(",")], default=[3, 7, 12])
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS))
    parser.add_argument("--fit", type=int, default=32)
    parser.add_argument("--choice", type=int, default=4)
    parser.add_argument(
        "--lessons", type=int, help="rows to recover on, the fitting ones first; those alone by default"
    )
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--pieces", type=int, default=1, help="rows that a document may give, held-out ones give one")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--calibration", choices=("prose", "mixed"), default="prose", help="kinds of text, for all")
    parser.add_argument("--latency", action="store_true", help="time prefill and decoding of each network that is made")
    parser.add_argument("--time", action="store_true", help="time what finished cells have removed, where it was not")
    parser.add_argument("--documents", type=int, default=12, help="held-out documents of each text")
    parser.add_argument("--items", type=int, default=16, help="items of each task")
    parser.add_argument("--recover", type=int, default=0, help="tokens to recover on")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--table-only", action="store_true")
    return parser.parse_args()


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "tokens_of_a_row": args.length,
        "fit_rows": args.fit,
        "rows_to_recover_on": args.lessons or args.fit,
        "choice_rows_of_64_tokens": args.choice,
        "calibration": args.calibration,
        "held_out_rows": dict.fromkeys(SETS, args.documents),
        "items_of_each_task": args.items,
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU",
        "threads": torch.get_num_threads(),
        "dtype": "float32",
    }


def written(document: dict[str, Any]) -> str:
    """The document as JSON, each cell on a line of its own."""
    cells = ",\n".join(f"  {json.dumps(name)}: {json.dumps(cell)}" for name, cell in document["cells"].items())
    outer = json.dumps({**document, "cells": {}}, indent=1)
    return outer.replace('"cells": {}', f'"cells": {{\n{cells}\n }}') + "\n"


def cell_file(work: Path, name: str, count: int, tokens: int) -> Path:
    """Where the figures of a method at a point stand, recovered on so many tokens."""
    return work / f"{name}-{count}{f'-recovered-{tokens}' if tokens else ''}.json"


class Bench:
    """The original, the texts, and how a cell is measured."""

    def __init__(self, args: argparse.Namespace) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.args, texts = args, args.texts
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval().requires_grad_(False)
        model = model.to(args.device)
        calibration = calibration_file(texts, args.work, args.calibration)
        choice = rows_of(tokenizer, calibration, args.choice, 64).to(args.device)
        count = max(args.fit, args.lessons or 0)
        rows = rows_of(tokenizer, calibration, count, args.length, args.pieces).to(args.device)
        self.ground = Ground(model, tokenizer, rows[: args.fit], choice, rows)
        self.held_out = {
            name: rows_of(tokenizer, texts / f"heldout_{name}.jsonl", args.documents, args.length).to(args.device)
            for name in SETS
        }
        lines = (texts / "heldout_prose.jsonl").read_text(encoding="utf-8").splitlines()[args.documents :]
        file = args.work / "tasks.json"
        if not file.exists():
            documents = [json.loads(line)["text"] for line in lines]
            file.write_text(json.dumps(judge.tasks(model, tokenizer, documents, args.items)))
        self.tasks = {name: items[: args.items] for name, items in json.loads(file.read_text()).items()}

    def measure(self, name: str, count: int, tokens: Sequence[int]) -> None:
        """One method at one point, made once, as it is and recovered: each kept in its file as it comes."""
        start, cpu = time.perf_counter(), _cpu_seconds()
        make = methods.original if name == "original" else METHODS[name]
        model, note = make(self.ground, count, self.args.work)
        made = {"note": note, "cpu_seconds_to_make": round(_cpu_seconds() - cpu, 1)}
        for each in sorted(tokens):
            if each:
                recover_(model, self.ground, each, last_only=name == "last")
            cell = {"method": name, "layers_removed": count, "tokens_of_recovery": each, **made, **self.figures(model)}
            cell["seconds"] = round(time.perf_counter() - start, 1)
            cell_file(self.args.work, name, count, each).write_text(json.dumps(cell))

    def time_cells(self) -> None:
        """Latency of the networks of finished cells that have none, rebuilt from their notes; weights do not matter.

        All layers are alike, so networks of as many attentions and MLPs are timed once.
        """
        known: dict[tuple[int, int, int], dict[str, float]] = {}
        for file in sorted(self.args.work.glob("*-[0-9]*.json")):
            cell = json.loads(file.read_text())
            if "perplexity" in cell and not cell["latency"] and cell["layers_removed"]:
                cut = cut_as_noted(self.ground.model, cell["note"])
                left = units_left(cut)
                if left not in known:
                    known[left] = judge.latency_shares(cut, self.ground.model, self.held_out["prose"])
                cell["latency"] = known[left]
                file.write_text(json.dumps(cell))

    def figures(self, model: Any) -> dict[str, Any]:
        """Losses by document, answers, size and, with --latency, shares of the original's time."""
        losses = {part: judge.losses(model, rows) for part, rows in self.held_out.items()}
        return {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "losses": losses,
            "perplexity": {part: judge.perplexity(values) for part, values in losses.items()},
            "latency": judge.latency_shares(model, self.ground.model, self.held_out["prose"])
            if self.args.latency
            else {},
            "exact": {task: judge.exact(model, items) for task, items in self.tasks.items()},
        }


def table(document: dict[str, Any]) -> list[str]:
    """Markdown: a table for each point and budget of recovery, best perplexity first."""
    cells = document["cells"]
    original = cells.get("original-0")
    if original is None:
        return []
    lines = []
    keys = sorted({(cell["tokens_of_recovery"], cell["layers_removed"]) for cell in cells.values()} - {(0, 0)})
    for tokens, count in keys:
        rows = [
            cell for cell in cells.values() if (cell["tokens_of_recovery"], cell["layers_removed"]) == (tokens, count)
        ]
        rows.sort(key=_loss)
        best = min((row for row in rows if row["method"].startswith("shoal")), key=_loss, default=None)
        what = f"recovered on {tokens:,} tokens" if tokens else "without training"
        lines += [
            "",
            f"**{count} layers out, {what}**",
            "",
            "| method | perplexity, prose | handbook | of the original's | nats above Shoal's best (95 %) "
            "| copying, counting, cloze | latency, prefill and a token |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [_row(cell, original, best) for cell in [original, *rows]]
    return lines


def _row(cell: dict[str, Any], original: dict[str, Any], best: dict[str, Any] | None) -> str:
    ratio = judge.perplexity(_all(cell)) / judge.perplexity(_all(original))
    gap = ""
    if best is not None and cell is not best and cell is not original:
        mean, low, high = judge.paired_interval(_all(cell), _all(best))
        gap = f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
    right = ", ".join(f"{sum(values)}/{len(values)}" for values in cell["exact"].values())
    prose, handbook = (cell["perplexity"][name] for name in SETS)
    figures = " | ".join([_shown(prose), _shown(handbook), _shown(ratio, 2)])
    times = ", ".join(f"{share:.2f}" for share in cell.get("latency", {}).values())
    return f"| {TITLES[cell['method']]} | {figures} | {gap} | {right} | {times} |"


def _shown(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}f}" if value < 1e4 else f"{value:.0e}"


def _all(cell: dict[str, Any]) -> list[float]:
    return [value for name in SETS for value in cell["losses"][name]]


def _loss(cell: dict[str, Any]) -> float:
    return sum(_all(cell))


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
