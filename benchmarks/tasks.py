"""Networks of any task: Shoal's plan against removal by block influence at equal latency, both recovered alike.

    python benchmarks/tasks.py FILE.py:network FILE.py:data --task embedding --points 0.85,0.67 --out FILE.json

`data` returns (train, test) as data sets or loaders; labels are not needed. Each cell is kept in the work folder as
soon as it is done, so that an interrupted run goes on. Every figure is that of the record of `shoal.compress`;
`--check` has a figure of the task computed once more by the few lines below, which share nothing with Shoal.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import shoal
from shoal.blocks import analyze
from shoal.files.writing import write_text
from shoal.measure import latency_ratios
from shoal.record import Record
from shoal.scanning.scores.collect import block_scores
from shoal.sources import Data, load_data, load_model


def main() -> None:
    """Run the cells that are missing, write the document, print a table."""
    args = arguments()
    model, data = load_model(args.model).model, load_data(args.data, batch_size=args.batch_size)
    cells = []
    for point in args.points:
        for method, run in (("shoal", plan), ("block influence", influence)):
            place = args.work / f"{method.replace(' ', '-')}-{point:g}.json"
            if not place.exists():
                print(f"{method} at {point:g}", flush=True)
                place.parent.mkdir(parents=True, exist_ok=True)
                write_text(place, json.dumps(cell(args, method, point, run(args, model, data, point), model, data)))
            cells.append(json.loads(place.read_text(encoding="utf-8")))
    document = {"command": command(args), "cells": cells}
    write_text(args.out, json.dumps(document, indent=1) + "\n")
    print("\n".join(table(cells)))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--task", required=True)
    parser.add_argument("--points", type=lambda text: [float(part) for part in text.split(",")], default=[0.85, 0.67])
    parser.add_argument("--steps", type=int, default=200, help="of recovery, for both methods; 0 for none")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.work = args.work or Path("build") / "tasks" / args.out.stem
    return args


def compressed(args: argparse.Namespace, model: nn.Module, data: Data, goal: Any) -> shoal.CompressResult:
    """One run of compress(), the same for both methods but for the goal."""
    return shoal.compress(
        model,
        data.calibration(augment=False),
        goal,
        validation=data.validation(),
        test=data.test(),
        recovery=args.steps or None,
        config=shoal.CompressConfig(task=args.task, images=args.images, tables=args.work / "tables"),
    )


def plan(args: argparse.Namespace, model: nn.Module, data: Data, point: float) -> shoal.CompressResult:
    """Shoal's own plan at a share of the latency."""
    return compressed(args, model, data, shoal.Budget(latency=point))


def influence(args: argparse.Namespace, model: nn.Module, data: Data, point: float) -> shoal.CompressResult | None:
    """The fewest blocks removed in the order of block influence (arXiv:2403.03853) that meet the point."""
    batch = data.example(args.batch_size)
    graph = analyze(model, batch.take(2))
    scores = block_scores(graph, data.calibration(augment=False, limit=args.images))
    removable = [block.path for block in graph.chain.removable if "block_influence" in scores.get(block.path, {})]
    order = sorted(removable, key=lambda path: scores[path]["block_influence"])
    for count in range(1, len(order) + 1):
        paths = tuple(order[:count])
        try:
            plain = shoal.compress(
                model,
                [batch],
                shoal.Blocks(paths),
                config=shoal.CompressConfig(task=args.task, latency_seconds=0.05),
            ).model
        except shoal.ShoalError:
            continue
        ratio = latency_ratios({"original": model, "cut": plain}, batch, reference="original")["cut"]
        if ratio.high <= 1.02 * point:
            return compressed(args, model, data, shoal.Blocks(paths))
    return None


def cell(
    args: argparse.Namespace,
    method: str,
    point: float,
    result: shoal.CompressResult | None,
    model: nn.Module,
    data: Data,
) -> dict[str, Any]:
    """What one method came to at one point."""
    found: dict[str, Any] = {"method": method, "point": point, "reached": result is not None}
    if result is None:
        return found
    record: Record = result.record
    batch = data.example(args.batch_size)
    ratio = latency_ratios({"original": model, "cut": result.model}, batch, reference="original")["cut"]
    found |= {
        "reached": record.reached,
        "message": record.message,
        "ratio": [ratio.ratio, ratio.low, ratio.high],
        "metrics": [metric.model_dump(mode="json") for metric in record.comparison.metrics],
        "damage": [record.comparison.kl, *record.comparison.kl_interval],
        "blocks": [record.original.blocks, record.compressed.blocks],
        "machine": record.machine.model_dump(mode="json"),
        "seconds": record.seconds,
    }
    if args.check:
        found["checked"] = CHECKS[args.task](model, result.model, list(data.test()))
    return found


def outputs(model: nn.Module, batches: Sequence[Any]) -> torch.Tensor:
    """What a network returns for all test samples, as one tensor."""
    rows = []
    with torch.inference_mode():
        for item in batches:
            inputs = item[0] if isinstance(item, (tuple, list)) else item
            rows.append(model(**inputs) if isinstance(inputs, dict) else model(inputs))
    return torch.cat(rows).double()


def cosine(original: nn.Module, cut: nn.Module, batches: Sequence[Any]) -> dict[str, float]:
    """Mean cosine with the original, and how often the nearest other sample is the same."""
    left, right = (torch.nn.functional.normalize(outputs(model, batches).flatten(1)) for model in (original, cut))
    nearest = [(vectors @ vectors.T).fill_diagonal_(-2.0).argmax(1) for vectors in (left, right)]
    same = float((nearest[0] == nearest[1]).double().mean())
    return {"cosine": float((left * right).sum(1).mean()), "same_nearest": same}


def psnr(original: nn.Module, cut: nn.Module, batches: Sequence[Any]) -> dict[str, float]:
    """PSNR against the original's image, the mean over images."""
    left, right = (outputs(model, batches) for model in (original, cut))
    return {"psnr": float((-10 * (left - right).square().flatten(1).mean(1).log10()).mean())}


def relative(original: nn.Module, cut: nn.Module, batches: Sequence[Any]) -> dict[str, float]:
    """The squared error as a share of the variance of the original's output."""
    left, right = (outputs(model, batches) for model in (original, cut))
    return {"relative": float((left - right).square().mean() / left.var(correction=0))}


CHECKS: dict[str, Callable[[nn.Module, nn.Module, Sequence[Any]], dict[str, float]]] = {
    "embedding": cosine,
    "restoration": psnr,
    "regression": relative,
    "classification": relative,
}


def command(args: argparse.Namespace) -> str:
    """The command without the folders of this machine."""
    specs = [":".join(Path(part).name for part in spec.split(":")) for spec in (args.model, args.data)]
    points = ",".join(f"{point:g}" for point in args.points)
    return f"benchmarks/tasks.py {' '.join(specs)} --task {args.task} --points {points} --steps {args.steps}"


def table(cells: Sequence[dict[str, Any]]) -> list[str]:
    """A table for the documentation."""
    lines = ["| point | method | share of the latency | figures |", "|---|---|---|---|"]
    for entry in cells:
        if "ratio" not in entry:
            lines.append(f"| {entry['point']:g} | {entry['method']} | not reached | |")
            continue
        share = "{:.3f} ({:.3f} to {:.3f})".format(*entry["ratio"])
        figures = [
            "{} {:.4g} ({:.4g} to {:.4g})".format(metric["label"], metric["compressed"], *metric["compressed_interval"])
            for metric in entry["metrics"]
        ]
        damage = "damage {:.4g} ({:.4g} to {:.4g})".format(*entry["damage"])
        lines.append(f"| {entry['point']:g} | {entry['method']} | {share} | {'; '.join([*figures, damage])} |")
    return lines


if __name__ == "__main__":
    main()
