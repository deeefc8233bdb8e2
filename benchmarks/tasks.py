"""Networks of any task: Shoal's plan against removal by block influence at equal latency, both recovered alike.

    python benchmarks/tasks.py FILE.py:network FILE.py:data --task embedding --recovered 0.67 --out FILE.json

`data` returns (train, test) as data sets or loaders; labels are not needed. Every point is taken without recovery, and
those of --recovered once more with it. Each cell is kept in the work folder as soon as it is done, and recovery on the
way, so that an interrupted run goes on. Every figure is Shoal's own, on test; `--check` names a function
that computes a figure of the task once more, `check(original, cut, test mini-batches)`, and shares nothing with Shoal.
"""

import argparse
import json
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import shoal
from shoal.batches import Batch, batches
from shoal.blocks import analyze
from shoal.files.writing import write_text
from shoal.measure import Reading, latency_ratios
from shoal.pipeline.judging import Judge
from shoal.plan import Replace
from shoal.record import LatencyRatio, Record
from shoal.recover import DistillData, DistillResult
from shoal.scanning import removal_sweep
from shoal.scanning.scores.collect import block_scores
from shoal.sources import Data, load_data, load_function, load_model
from shoal.surgery import remove_blocks
from shoal.tasks import OutputRequest, task_named

_SECONDS = 8.0  # that a network is timed for, at most
BY = (
    "what Shoal's points are: shares of the latency or of the MACs; how many attentions and MLPs are removed, one by "
    "one; or how many blocks, those of the least damage in a scan"
)


def main() -> None:
    """Run the cells that are missing, write the document, print a table."""
    args = arguments()
    torch.set_num_threads(args.threads)
    model, data = load_model(args.model).model, load_data(args.data, batch_size=args.batch_size)
    cells = []
    for point in args.points:
        latency = point
        for method, run in (("shoal", plan), ("block influence", influence)):
            place = args.work / f"{method.replace(' ', '-')}-{point:g}.json"
            if not place.exists():
                print(f"{method} at {point:g}", flush=True)
                place.parent.mkdir(parents=True, exist_ok=True)
                write_text(place, json.dumps(cells_of(Run(args, model, data, point, latency, method), run)))
            cells += json.loads(place.read_text(encoding="utf-8"))
            latency = cells[-1].get("ratio", [latency])[0]  # removal by influence has to be as fast
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
    parser.add_argument("--by", choices=["latency", "macs", "units", "scan"], default="latency", help=BY)
    parser.add_argument("--removals", action="store_true", help="plan removals alone, no replacements")
    parser.add_argument("--grain", choices=["block", "unit"], default="block", help="of what a plan removes")
    parser.add_argument("--learning", type=json.loads, default={}, help="of DistillConfig, as JSON")
    parser.add_argument("--unrecovered", default="", help="a method that is not recovered")
    parser.add_argument("--recovered", type=shares, default=[], help="points that are recovered as well")
    parser.add_argument("--recovery", type=lambda text: int(text) if text.isdigit() else text, default=200)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--latency-batch", type=int, default=4, help="samples that latency is timed with")
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
    latency: float
    method: str


def compressed(run: Run, goal: Any) -> shoal.CompressResult:
    """One run of compress(), the same for both methods but for the goal."""
    args, data = run.args, run.data
    return shoal.compress(
        run.model,
        data.calibration(augment=False),
        goal,
        validation=data.validation(limit=args.judged),
        test=data.test(),
        config=shoal.CompressConfig(
            task=args.task,
            images=args.images,
            judge_images=args.judged,
            tables=args.work / "tables" if goal.by_plan else None,
            **({"stand_ins": (), "table_refit": False} if args.removals and goal.by_plan else {}),
            latency_batch_sizes=(args.latency_batch,),
        ),
    )


def plan(run: Run) -> shoal.CompressResult:
    """Shoal's own plan at a point; without latencies where the machine is shared, since it plans by what it times."""
    if run.args.by == "scan":
        damages = traced(run.args, run.model, run.data)["scan"]
        least = sorted(damages, key=damages.__getitem__)[: int(run.point)]
        return compressed(run, shoal.Blocks(tuple(least)))
    if run.args.by == "units":
        return compressed(run, shoal.RemoveBlocks(int(run.point), grain="unit"))
    return compressed(run, shoal.Budget(**{run.args.by: run.point}, grain=run.args.grain))


def influence(run: Run) -> shoal.CompressResult | None:
    """The fewest blocks removed in the order of block influence (arXiv:2403.03853) that are as fast as Shoal's plan."""
    batch = run.data.example(run.args.latency_batch)
    graph = analyze(run.model, batch.take(2))
    scores = block_scores(graph, run.data.calibration(augment=False, limit=run.args.images))
    removable = [block.path for block in graph.chain.removable if "block_influence" in scores.get(block.path, {})]
    order = sorted(removable, key=lambda path: scores[path]["block_influence"])

    def is_fast(count: int) -> bool:
        cut = remove_blocks(run.model, batch.take(2), order[:count])
        return share(run.model, cut, batch).ratio <= 1.02 * run.latency

    count = 1 + bisect_left(range(1, len(order) + 1), True, key=is_fast)
    return compressed(run, shoal.Blocks(tuple(order[:count]))) if count <= len(order) else None


def share(original: nn.Module, cut: nn.Module, batch: Batch) -> LatencyRatio:
    """The latency of a network as a share of the original's."""
    return latency_ratios({"original": original, "cut": cut}, batch, reference="original", max_seconds=_SECONDS)["cut"]


def cells_of(run: Run, method: Callable[[Run], shoal.CompressResult | None]) -> list[dict[str, Any]]:
    """What one method came to at one point; and once more after recovery, where the point is one of --recovered."""
    started = time.perf_counter()
    result = method(run)
    entry: dict[str, Any] = {"method": run.method, "point": run.point, "reached": result is not None}
    if result is None:
        return [entry]
    record: Record = result.record
    entry |= {
        "reached": record.reached,
        "message": record.message,
        "blocks": [record.original.blocks, record.compressed.blocks],
        "plan": [action.model_dump(mode="json") for action in result.plan.actions],
        "front": front(record),
        "machine": record.machine.model_dump(mode="json"),
    }
    entries = [{**entry, "recovery": None, **figures(run, result.model), "seconds": time.perf_counter() - started}]
    print("\n".join([*table(entries), json.dumps(entries[0].get("checked"))]), flush=True)  # recovery may take hours
    if run.point in run.args.recovered and run.method not in run.args.unrecovered:
        started = time.perf_counter()
        learned = recovered(run, result)
        entries.append({**entry, "recovery": learned.recovery.model_dump(mode="json"), **figures(run, learned.model)})
        entries[-1]["seconds"] = time.perf_counter() - started
    return entries


def front(record: Record, points: int = 5) -> list[dict[str, float]]:
    """Some points of the front that the plan was chosen from, evenly spread: as predicted from the table."""
    known = sorted(record.planning.front, key=lambda point: point.latency_ms) if record.planning else []
    chosen = [known[round(index * (len(known) - 1) / (points - 1))] for index in range(points)] if known else []
    return [{"ms": point.latency_ms, "damage": point.damage, "depth": point.depth} for point in chosen]


def recovered(run: Run, result: shoal.CompressResult) -> DistillResult:
    """Distillation on the calibration samples, the same for both methods; labels are not used."""
    data, args = run.data, run.args
    replaced = [action for action in result.plan.actions if isinstance(action, Replace)]
    learning = DistillData(
        lambda epoch: data.calibration(augment=False, epoch=epoch),
        replaced=replaced,
        norm_batches=list(batches(data.calibration(augment=False, limit=128))),
        reading=reading(run),
    )
    return shoal.distill(
        result.model,
        run.model,
        learning,
        validation=data.validation(limit=args.judged),
        budget=args.recovery,
        config=shoal.DistillConfig(**{"looks": 8, **args.learning}),
        folder=args.work / f"{run.method.replace(' ', '-')}-{run.point:g}-recovery",
    )


def reading(run: Run) -> Reading:
    """How outputs are read, as the task says."""
    data = list(batches(run.data.calibration(augment=False, limit=run.args.judged)))
    request = OutputRequest(task=run.args.task)
    return request.read(request.choose(run.model, data[0]), run.model, data)


def figures(run: Run, cut: nn.Module) -> dict[str, Any]:
    """Latency, metrics and damage of a network against the original, on test."""
    ratio = share(run.model, cut, run.data.example(run.args.latency_batch))
    judged = Judge(run.model, list(batches(run.data.test())), reading(run), task_named(run.args.task), "test")
    comparison = judged.compare(cut)
    measured: dict[str, Any] = {
        "ratio": [ratio.ratio, ratio.low, ratio.high],
        "metrics": [metric.model_dump(mode="json") for metric in comparison.metrics],
        "damage": [comparison.kl, *comparison.kl_interval],
    }
    if run.args.check:
        measured["checked"] = load_function(run.args.check)(run.model, cut, list(run.data.test()))
    return measured


def traced(args: argparse.Namespace, model: nn.Module, data: Data) -> dict[str, Any]:
    """What the trace says, and the damage of each block's removal."""
    graph = analyze(model, data.example(2))
    sweep = removal_sweep(graph, batches(data.validation(limit=args.judged)), [b.path for b in graph.chain.removable])
    return {"blocks": len(graph.chain), "scan": {worth.path: worth.damage for worth in sweep}}


def command(args: argparse.Namespace) -> str:
    """The command without the folders of this machine."""
    specs = [":".join(Path(part).name for part in spec.split(":")) for spec in (args.model, args.data)]
    recovered = ",".join(f"{point:g}" for point in args.recovered)
    options = {
        "--removals": args.removals,
        "--grain unit": args.grain == "unit",
        f"--learning {json.dumps(args.learning)!r}": bool(args.learning),
    }
    more = "".join(f" {name}" for name, is_set in options.items() if is_set)
    return (
        f"benchmarks/tasks.py {' '.join(specs)} --task {args.task} --by {args.by} --recovered {recovered} "
        f"--recovery {args.recovery} --batch-size {args.batch_size} --latency-batch {args.latency_batch} "
        f"--images {args.images} --judged {args.judged}{more}"
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
            f"{entry['recovery']['steps']} steps" if entry["recovery"] else "–",
            ratio,
            "; ".join(figures),
        ]
        lines.append(f"| {' | '.join(line)} |")
    return lines


if __name__ == "__main__":
    main()
