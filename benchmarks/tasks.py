"""Networks of any task: Shoal's plan against removal by block influence at equal latency, both recovered alike.

    python benchmarks/tasks.py FILE.py:network FILE.py:data --task embedding --recovered 0.67 --out FILE.json

`data` returns (train, test) as data sets or loaders; labels are not needed. Every point is taken without recovery, and
those of --recovered once more with it. Each cell is kept in the work folder as soon as it is done, and recovery on the
way, so that an interrupted run goes on. Every figure is Shoal's own, on test; `--check` names a function
that computes a figure of the task once more, `check(original, cut, test mini-batches)`, and shares nothing with Shoal.

With --device all but latency is computed there. Latency is that of the CPU: with --untimed the document has none but
what the rival's number of blocks is found by, and --latency-only adds it to --out afterwards, on any machine, from the
plans that are recorded there, since it does not depend on weights.
"""

import argparse
import json
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import shoal
from shoal.batches import Batch, batches, first_samples
from shoal.blocks import analyze
from shoal.files.writing import write_text
from shoal.measure import Reading, latency_ratios, machine
from shoal.pipeline.judging import Judge
from shoal.plan import Plan, Replace
from shoal.preserve import copied
from shoal.record import LatencyRatio, Record
from shoal.recover import DistillData, DistillResult
from shoal.scanning import removal_sweep
from shoal.scanning.scores.collect import block_scores
from shoal.sources import Data, load_data, load_function, load_model
from shoal.surgery import remove_blocks
from shoal.surgery.signature import signature_of
from shoal.tasks import OutputRequest, task_named

_SECONDS = 8.0  # that a network is timed for, at most
_STARTED = time.perf_counter()
BY = (
    "what Shoal's points are: shares of the latency or of the MACs; how many attentions and MLPs are removed, one by "
    "one; or how many blocks, those of the least damage in a scan"
)


def main() -> None:
    """Run the cells that are missing, write the document after each, print a table."""
    args = arguments()
    torch.set_num_threads(args.cores or args.threads)
    model = load_model(args.model).model.eval().to(args.device)
    ground = Ground(args, model, load_data(args.data, batch_size=args.batch_size))
    if args.latency_only:
        document = json.loads(args.out.read_text(encoding="utf-8"))
        timed(ground, document)
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    else:
        document = {"command": command(args), "trace": ground.trace, "influence": ground.influence, "cells": []}
    for point in [] if args.latency_only else args.points:
        latency = point
        for method, make in (("shoal", plan), ("block influence", influence)):
            cells = cells_of(Run(ground, point, method, latency), make)
            latency = cells[-1].get("ratio", [latency])[0]  # removal by influence has to be as fast
            document["cells"] += cells
            write_text(args.out, json.dumps(document, indent=1) + "\n")
    print("\n".join(table(document["cells"])))


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
    parser.add_argument("--kinds", help="of replacement, with commas; by default those of compress()")
    parser.add_argument("--longest", type=int, default=5, help="blocks that a replacement stands in for, at most")
    parser.add_argument("--no-table-refit", action="store_true", help="plan by what changes do without a refit: faster")
    parser.add_argument("--device", default="cpu", help="where networks are planned, recovered and judged")
    parser.add_argument("--untimed", action="store_true", help="time the rival's choice alone")
    parser.add_argument("--latency-only", action="store_true", help="time the networks of --out")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--latency-batch", type=int, default=4, help="samples that latency is timed with")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--judged", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1, help="that latency is timed with")
    parser.add_argument("--cores", type=int, help="for all else; by default the same")
    parser.add_argument("--check", metavar="FILE.py:FUNCTION")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.work = args.work or Path("build") / "tasks" / args.out.stem
    return args


def shares(text: str) -> list[float]:
    """Numbers with commas."""
    return [float(part) for part in text.split(",")]


@dataclass(frozen=True, eq=False)
class Ground:
    """What all cells have in common."""

    args: argparse.Namespace
    model: nn.Module
    data: Data

    def batches(self, loader: Any, limit: int | None = None) -> list[Batch]:
        """Mini-batches where the network is."""
        return list(first_samples(batches(loader, self.args.device), limit))

    @cached_property
    def timed_with(self) -> Batch:
        """What latency is measured with, on the CPU."""
        return self.data.example(self.args.latency_batch)

    @cached_property
    def original(self) -> nn.Module:
        """The original on the CPU."""
        return copied(self.model).cpu()

    def share(self, cut: nn.Module) -> LatencyRatio:
        """The latency of a network as a share of the original's, on the CPU."""
        networks = {"original": self.original, "cut": copied(cut).cpu()}
        torch.set_num_threads(self.args.threads)
        try:
            return latency_ratios(networks, self.timed_with, reference="original", max_seconds=_SECONDS)["cut"]
        finally:
            torch.set_num_threads(self.args.cores or self.args.threads)

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What an earlier run kept, or what is made now and kept."""
        place = self.args.work / f"{name}.json"
        if not place.exists():
            print(f"{time.perf_counter() - _STARTED:.0f} s: {name}", flush=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            write_text(place, json.dumps(make()))
        return json.loads(place.read_text(encoding="utf-8"))

    @cached_property
    def trace(self) -> dict[str, Any]:
        """What the trace says, and the damage of each block's removal."""

        def sweep() -> dict[str, Any]:
            graph, judged = analyze(self.model, self.batches(self.data.test(), 2)[0]), self.judged
            worths = removal_sweep(graph, judged, [block.path for block in graph.chain.removable])
            return {"blocks": len(graph.chain), "scan": {worth.path: worth.damage for worth in worths}}

        return self.kept("trace", sweep)

    @cached_property
    def judged(self) -> list[Batch]:
        """What damage is measured on."""
        return self.batches(self.data.validation(limit=self.args.judged))

    @cached_property
    def influence(self) -> list[str]:
        """Blocks in the order of block influence (arXiv:2403.03853)."""

        def order() -> list[str]:
            graph = analyze(self.model, self.batches(self.data.test(), 2)[0])
            scores = block_scores(graph, self.batches(self.data.calibration(augment=False, limit=self.args.images)))
            removable = [block.path for block in graph.chain.removable if "block_influence" in scores[block.path]]
            return sorted(removable, key=lambda path: scores[path]["block_influence"])

        return self.kept("influence", order)

    def without(self, count: int) -> nn.Module:
        """The network without the first ones of that order."""
        return remove_blocks(self.model, self.batches(self.data.test(), 2)[0], self.influence[:count])

    def rebuilt(self, actions: list[Any]) -> nn.Module:
        """A network of the structure of a recorded plan, with other weights."""
        example = self.batches(self.data.test(), 2)[0]
        graph = analyze(copied(self.model), example)
        plan = Plan(inputs=[], network=signature_of(graph.model, graph.chain), actions=actions)
        return shoal.apply(self.model, plan, example, weights_follow=True)


@dataclass(frozen=True)
class Run:
    """What one cell is about."""

    ground: Ground
    point: float
    method: str
    latency: float = 1.0

    @property
    def args(self) -> argparse.Namespace:
        """The command line."""
        return self.ground.args


def compressed(run: Run, goal: Any) -> shoal.CompressResult:
    """One run of compress(), the same for both methods but for the goal."""
    args, data = run.args, run.ground.data
    by_plan: dict[str, Any] = {}
    if goal.by_plan:
        by_plan = {"tables": args.work / "tables", "longest": args.longest, "table_refit": not args.no_table_refit}
        by_plan |= {"stand_ins": tuple(args.kinds.split(","))} if args.kinds else {}
        by_plan |= {"stand_ins": (), "table_refit": False} if args.removals else {}
    return shoal.compress(
        run.ground.model,
        data.calibration(augment=False),
        goal,
        validation=data.validation(limit=args.judged),
        test=data.test(),
        config=shoal.CompressConfig(
            task=args.task,
            images=args.images,
            judge_images=args.judged,
            **by_plan,
            latency_batch_sizes=(args.latency_batch,),
        ),
    )


def plan(run: Run) -> shoal.CompressResult:
    """Shoal's own plan at a point; without latencies where the machine is shared, since it plans by what it times."""
    if run.args.by == "scan":
        damages = run.ground.trace["scan"]
        least = sorted(damages, key=damages.__getitem__)[: int(run.point)]
        return compressed(run, shoal.Blocks(tuple(least)))
    if run.args.by == "units":
        return compressed(run, shoal.RemoveBlocks(int(run.point), grain="unit"))
    return compressed(run, shoal.Budget(**{run.args.by: run.point}, grain=run.args.grain))


def influence(run: Run) -> shoal.CompressResult | None:
    """The fewest blocks removed in the order of block influence that are as fast as Shoal's plan."""
    ground = run.ground

    def is_fast(count: int) -> bool:
        ratio = ground.kept(f"without-{count}", lambda: ground.share(ground.without(count)).ratio)
        return bool(ratio <= 1.02 * run.latency)

    count = 1 + bisect_left(range(1, len(ground.influence) + 1), True, key=is_fast)
    return compressed(run, shoal.Blocks(tuple(ground.influence[:count]))) if count <= len(ground.influence) else None


def cells_of(run: Run, method: Callable[[Run], shoal.CompressResult | None]) -> list[dict[str, Any]]:
    """What one method came to at one point, as an earlier run kept it, or now."""
    return run.ground.kept(f"{run.method.replace(' ', '-')}-{run.point:g}", lambda: measured_cells(run, method))


def measured_cells(run: Run, method: Callable[[Run], shoal.CompressResult | None]) -> list[dict[str, Any]]:
    """A cell; and another one after recovery, where the point is one of --recovered."""
    started = time.perf_counter()
    entry: dict[str, Any] = {"method": run.method, "point": run.point, "reached": False}
    try:
        result = method(run)
    except shoal.ShoalError as error:
        return [{**entry, "message": str(error)}]
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
        print("\n".join([*table(entries), json.dumps(entries[1].get("checked"))]), flush=True)
    return entries


def front(record: Record, points: int = 5) -> list[dict[str, float]]:
    """Some points of the front that the plan was chosen from, evenly spread: as predicted from the table."""
    known = sorted(record.planning.front, key=lambda point: point.latency_ms) if record.planning else []
    chosen = [known[round(index * (len(known) - 1) / (points - 1))] for index in range(points)] if known else []
    return [{"ms": point.latency_ms, "damage": point.damage, "depth": point.depth} for point in chosen]


def recovered(run: Run, result: shoal.CompressResult) -> DistillResult:
    """Distillation on the calibration samples, the same for both methods; labels are not used."""
    data, args = run.ground.data, run.args
    replaced = [action for action in result.plan.actions if isinstance(action, Replace)]
    learning = DistillData(
        lambda epoch: data.calibration(augment=False, epoch=epoch),
        replaced=replaced,
        norm_batches=list(batches(data.calibration(augment=False, limit=128))),
        reading=reading(run),
    )
    return shoal.distill(
        result.model,
        run.ground.model,
        learning,
        validation=data.validation(limit=args.judged),
        budget=args.recovery,
        config=shoal.DistillConfig(**{"looks": 8, **args.learning}),
        folder=args.work / f"{run.method.replace(' ', '-')}-{run.point:g}-recovery",
    )


def reading(run: Run) -> Reading:
    """How outputs are read, as the task says."""
    data = run.ground.batches(run.ground.data.calibration(augment=False, limit=run.args.judged))
    request = OutputRequest(task=run.args.task)
    return request.read(request.choose(run.ground.model, data[0]), run.ground.model, data)


def figures(run: Run, cut: nn.Module) -> dict[str, Any]:
    """Latency, metrics and damage of a network against the original, on test."""
    ground, model = run.ground, run.ground.model
    judged = Judge(model, ground.batches(ground.data.test()), reading(run), task_named(run.args.task), "test")
    comparison = judged.compare(cut)
    measured: dict[str, Any] = {
        "metrics": [metric.model_dump(mode="json") for metric in comparison.metrics],
        "damage": [comparison.kl, *comparison.kl_interval],
    }
    if not run.args.untimed or run.method == "shoal":
        ratio = ground.share(cut)
        measured["ratio"] = [ratio.ratio, ratio.low, ratio.high]
    if run.args.check:
        test = tree_map_only(Tensor, lambda tensor: tensor.to(run.args.device), list(ground.data.test()))
        measured["checked"] = load_function(run.args.check)(model, cut, test)
    return measured


def timed(ground: Ground, document: dict[str, Any]) -> None:
    """Time the networks of a document here; those of the same plan once."""
    ratios: dict[str, list[float]] = {}
    for entry in document["cells"]:
        if "plan" in entry:
            key = json.dumps(entry["plan"])
            if key not in ratios:
                ratio = ground.share(ground.rebuilt(entry["plan"]))
                ratios[key] = [ratio.ratio, ratio.low, ratio.high]
                print(entry["method"], entry["point"], ratios[key], flush=True)
            entry["ratio"] = ratios[key]
    document["timed_on"] = machine("cpu").model_dump(mode="json")


def command(args: argparse.Namespace) -> str:
    """The command without the folders of this machine."""
    specs = [":".join(Path(part).name for part in spec.split(":")) for spec in (args.model, args.data)]
    points, recovered = (",".join(f"{point:g}" for point in given) for given in (args.points, args.recovered))
    options = {
        "--removals": args.removals,
        "--grain unit": args.grain == "unit",
        f"--learning {json.dumps(args.learning)!r}": bool(args.learning),
        f"--kinds {args.kinds}": bool(args.kinds),
        f"--longest {args.longest}": args.longest != 5,
        "--no-table-refit": args.no_table_refit,
        f"--device {args.device}": args.device != "cpu",
    }
    more = "".join(f" {name}" for name, is_set in options.items() if is_set)
    return (
        f"benchmarks/tasks.py {' '.join(specs)} --task {args.task} --by {args.by} --points {points} "
        f"--recovered {recovered} --recovery {args.recovery} --batch-size {args.batch_size} "
        f"--latency-batch {args.latency_batch} --images {args.images} --judged {args.judged}{more}"
    )


def table(cells: Sequence[dict[str, Any]]) -> list[str]:
    """A table for the documentation."""
    lines = ["| point | method | recovery | share of the latency | figures |", "|---|---|---|---|---|"]
    for entry in cells:
        if "metrics" not in entry:
            lines.append(f"| {entry['point']:g} | {entry['method']} | | not reached | |")
            continue
        ratio = "{:.3f} ({:.3f} to {:.3f})".format(*entry["ratio"]) if "ratio" in entry else "not timed"
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
