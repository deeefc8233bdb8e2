"""Networks of any task: Shoal's plan against removal by block influence at equal latency, both recovered alike.

    python benchmarks/tasks.py FILE.py:network FILE.py:data --task embedding --recovered 0.67 --out FILE.json

`data` returns (train, test) as data sets or loaders; labels are not needed. Every point is taken without recovery, and
those of --recovered once more with it. Each cell is kept in the work folder as soon as it is done, so that an
interrupted run goes on. Every figure is that of the record of `shoal.compress`, on test; `--check` names a function
that computes a figure of the task once more, `check(original, cut, test mini-batches)`, and shares nothing with Shoal.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import shoal
from shoal.batches import Batch, batches
from shoal.blocks import analyze
from shoal.files.writing import write_text
from shoal.measure import latency_ratios
from shoal.record import LatencyRatio, Record
from shoal.scanning import removal_sweep
from shoal.scanning.scores.collect import block_scores
from shoal.sources import Data, load_data, load_function, load_model
from shoal.surgery import remove_blocks


def main() -> None:
    """Run the cells that are missing, write the document, print a table."""
    args = arguments()
    torch.set_num_threads(args.threads)
    model, data = load_model(args.model).model, load_data(args.data, batch_size=args.batch_size)
    cells = []
    for point, recovery in [*((point, None) for point in args.points), *((p, args.recovery) for p in args.recovered)]:
        for method, run in (("shoal", plan), ("block influence", influence)):
            place = args.work / f"{method.replace(' ', '-')}-{point:g}-{recovery}.json"
            if not place.exists():
                print(f"{method} at {point:g}, recovery {recovery}", flush=True)
                place.parent.mkdir(parents=True, exist_ok=True)
                result = run(Run(args, model, data, point, recovery))
                write_text(place, json.dumps(cell(args, method, point, recovery, result, model, data)))
            cells.append(json.loads(place.read_text(encoding="utf-8")))
    document = {"command": command(args), "trace": traced(args, model, data), "cells": cells}
    write_text(args.out, json.dumps(document, indent=1) + "\n")
    print("\n".join(table(cells)))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--task", required=True)
    parser.add_argument("--points", type=shares, default=shares("0.9,0.8,0.7,0.6,0.5"), help="shares of the latency")
    parser.add_argument("--recovered", type=shares, default=[], help="points that are also taken with recovery")
    parser.add_argument("--recovery", type=lambda text: int(text) if text.isdigit() else text, default=200)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--judged", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--check", metavar="FILE.py:FUNCTION")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.work = args.work or Path("build") / "tasks" / args.out.stem
    return args


def shares(text: str) -> list[float]:
    """Numbers with commas."""
    return [float(part) for part in text.split(",")]


@dataclass(frozen=True)
class Run:
    """What one cell is about."""

    args: argparse.Namespace
    model: nn.Module
    data: Data
    point: float
    recovery: int | str | None


def compressed(run: Run, goal: Any) -> shoal.CompressResult:
    """One run of compress(), the same for both methods but for the goal."""
    args, data = run.args, run.data
    return shoal.compress(
        run.model,
        data.calibration(augment=False),
        goal,
        validation=data.validation(),
        test=data.test(),
        recovery=run.recovery,
        config=shoal.CompressConfig(
            task=args.task, images=args.images, judge_images=args.judged, tables=args.work / "tables"
        ),
    )


def plan(run: Run) -> shoal.CompressResult:
    """Shoal's own plan at a share of the latency."""
    return compressed(run, shoal.Budget(latency=run.point))


def influence(run: Run) -> shoal.CompressResult | None:
    """The fewest blocks removed in the order of block influence (arXiv:2403.03853) that meet the point."""
    batch = run.data.example(run.args.batch_size)
    graph = analyze(run.model, batch.take(2))
    scores = block_scores(graph, run.data.calibration(augment=False, limit=run.args.images))
    removable = [block.path for block in graph.chain.removable if "block_influence" in scores.get(block.path, {})]
    order = sorted(removable, key=lambda path: scores[path]["block_influence"])
    for count in range(1, len(order) + 1):
        paths = tuple(order[:count])
        try:
            cut = remove_blocks(run.model, batch.take(2), list(paths))
        except shoal.ShoalError:
            continue
        if share(run.model, cut, batch).high <= 1.02 * run.point:
            return compressed(run, shoal.Blocks(paths))
    return None


def share(original: nn.Module, cut: nn.Module, batch: Batch) -> LatencyRatio:
    """The latency of a network as a share of the original's."""
    return latency_ratios({"original": original, "cut": cut}, batch, reference="original")["cut"]


def cell(
    args: argparse.Namespace,
    method: str,
    point: float,
    recovery: int | str | None,
    result: shoal.CompressResult | None,
    model: nn.Module,
    data: Data,
) -> dict[str, Any]:
    """What one method came to at one point."""
    entry: dict[str, Any] = {"method": method, "point": point, "recovery": recovery, "reached": result is not None}
    if result is None:
        return entry
    record: Record = result.record
    ratio = share(model, result.model, data.example(args.batch_size))
    entry |= {
        "reached": record.reached,
        "message": record.message,
        "ratio": [ratio.ratio, ratio.low, ratio.high],
        "metrics": [metric.model_dump(mode="json") for metric in record.comparison.metrics],
        "damage": [record.comparison.kl, *record.comparison.kl_interval],
        "blocks": [record.original.blocks, record.compressed.blocks],
        "plan": [action.model_dump(mode="json") for action in result.plan.actions],
        "machine": record.machine.model_dump(mode="json"),
        "seconds": record.seconds,
    }
    if args.check:
        entry["checked"] = load_function(args.check)(model, result.model, list(data.test()))
    return entry


def traced(args: argparse.Namespace, model: nn.Module, data: Data) -> dict[str, Any]:
    """What the trace says, and the damage of each block's removal."""
    graph = analyze(model, data.example(2))
    sweep = removal_sweep(graph, batches(data.validation(limit=args.judged)), [b.path for b in graph.chain.removable])
    return {"blocks": len(graph.chain), "scan": {worth.path: worth.damage for worth in sweep}}


def command(args: argparse.Namespace) -> str:
    """The command without the folders of this machine."""
    specs = [":".join(Path(part).name for part in spec.split(":")) for spec in (args.model, args.data)]
    recovered = ",".join(f"{point:g}" for point in args.recovered)
    return (
        f"benchmarks/tasks.py {' '.join(specs)} --task {args.task} --recovered {recovered} --recovery {args.recovery} "
        f"--batch-size {args.batch_size} --images {args.images} --judged {args.judged}"
    )


def table(cells: Sequence[dict[str, Any]]) -> list[str]:
    """A table for the documentation."""
    lines = ["| point | method | recovery | share of the latency | figures |", "|---|---|---|---|---|"]
    for entry in cells:
        if "ratio" not in entry:
            lines.append(f"| {entry['point']:g} | {entry['method']} | | not reached | |")
            continue
        ratio = "{:.3f} ({:.3f} to {:.3f})".format(*entry["ratio"])
        figures = [
            "{} {:.4g} ({:.4g} to {:.4g})".format(metric["label"], metric["compressed"], *metric["compressed_interval"])
            for metric in entry["metrics"]
        ]
        figures.append("damage {:.4g} ({:.4g} to {:.4g})".format(*entry["damage"]))
        line = [
            f"{entry['point']:g}",
            entry["method"],
            str(entry["recovery"] or "–"),
            ratio,
            "; ".join(figures),
        ]
        lines.append(f"| {' | '.join(line)} |")
    return lines


if __name__ == "__main__":
    main()
