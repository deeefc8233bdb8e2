"""How far is a plan's guessed damage off? Sums with and without a refit, and corrected for pairs, on random plans.

    python benchmarks/guesses.py MODEL DATA [--weights F] [--mean ..] [--std ..] [--images 1024] [--judged 96]
        [--longest 4] [--plans 30] [--distilled 8] [--steps 50] [--seed 0] --out NAME.json

Plans are drawn near the best: optimal for damages that are randomly off, at random shares of the MACs. Each is built
and refitted as a whole; its damage then, on the same samples as the tables, is what a guess is compared with: the
median of |log(guess / damage)|, the median of the signed log, the spread about it, and Spearman's rank correlation, for
all plans and for the more damaged half of them. A few are distilled for some steps, and what is left is ranked too.
Times are of the processor, so that what else runs on the machine counts little. Latency is by MACs: no clock is
involved.
"""

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rivals.command_line import data_of, network_parser, public_spec, versions
from scipy.stats import spearmanr
from torch import nn

from shoal.batches import Batch, batches, first_samples
from shoal.blocks import analyze
from shoal.files.writing import write_text
from shoal.measure import cost, machine
from shoal.pipeline.cache import MeasurementCache
from shoal.pipeline.candidate_refit import CandidateRefitConfig
from shoal.pipeline.candidate_table import CandidateBuilder, CandidateTable
from shoal.pipeline.costs import CostModel
from shoal.pipeline.data_splits import with_mixup
from shoal.pipeline.plan_builder import PlanBuilder
from shoal.plan import Path as PlanPath
from shoal.plan import Remove, ResourceLimits, solve
from shoal.record import LatencyRatio
from shoal.recover import DistillConfig, DistillData, distill
from shoal.replace import build_segments, refit_
from shoal.sources import load_model

KINDS = ("identity", "linear", "conv3", "lowrank1/4")
SPREADS = (0.5, 1.0, 2.0)
GUESSES = ("raw", "refitted", "corrected")
REFITTED_ON = 512


@dataclass
class MacsLatency:
    """A millisecond for a million multiplications."""

    example: Batch
    source = "MACs"
    measures = False
    batch_size = 1

    def time_modules(self, group: Mapping[str, nn.Module], shape: tuple[int, ...]) -> dict[str, float]:
        """Of each module on one sample."""
        return {key: 1e-6 * cost(module, Batch((torch.zeros(1, *shape),))).macs for key, module in group.items()}

    def time_models(self, group: Mapping[str, nn.Module], *, precise: bool = False) -> dict[str, float]:
        """Of whole networks on the example."""
        return {key: 1e-6 * cost(model, self.example).macs for key, model in group.items()}

    def time_ratios(self, group: Mapping[str, nn.Module], effort: str = "short") -> dict[str, LatencyRatio]:
        """Nothing is timed, so nothing asks for it."""
        raise NotImplementedError


def main() -> None:
    """Measure, print, keep the figures."""
    args = _arguments()
    data = data_of(args, args.data)
    model = load_model(args.model, args.weights).model.eval()
    images = _first(batches(data.calibration()), args.images)
    judge = with_mixup(_first(batches(data.validation()), args.judged))
    builder, seconds = _tables(model, images, judge, args)
    plans = _plans(builder.tables, args)
    measured = [_measured(builder, path, number) for number, path in enumerate(plans)]
    distilled = [_distilled(model, builder, path, images, judge, args) for path in _spread_out(plans, measured, args)]
    document = {
        "command": f"python benchmarks/guesses.py ... {public_spec(args.data)} --images {args.images} --judged "
        f"{args.judged} --longest {args.longest} --plans {args.plans} --distilled {args.distilled} --seed {args.seed}",
        "model": args.model.rsplit("/", 1)[-1],
        "images": {"fitted": args.images, "judged_with_blends": sum(batch.size for batch in judge)},
        "candidates": sum(edge.action != "keep" for edge in builder.tables.edges),
        "pairs": len(builder.tables.pairs),
        "processor_seconds": seconds,
        "guesses": {name: _errors(measured, name) for name in GUESSES},
        "distilled": {"steps": args.steps, "plans": distilled, **_ranks(distilled)},
        "plans": measured,
        "versions": versions(),
        "machine": machine("cpu").model_dump(mode="json"),
    }
    for name, errors in document["guesses"].items():
        print(name, json.dumps(errors), flush=True)
    write_text(args.out, json.dumps(document, indent=1) + "\n")


def _tables(
    model: nn.Module, images: Sequence[Batch], judge: Sequence[Batch], args: argparse.Namespace
) -> tuple[PlanBuilder, dict[str, float]]:
    """The tables, and the processor's time for them without and with the refit."""
    graph, cache = analyze(model, images[0].take(2)), MeasurementCache(None, {})
    costs = CostModel(graph, build_segments(graph), images[0].take(2), MacsLatency(images[0].take(1)), cache)
    seconds = {}
    for name, refit in (("without_refit", None), ("refit_and_pairs", CandidateRefitConfig())):
        began = time.process_time()
        # The second builder finds everything but the refits in the cache.
        candidates = CandidateBuilder(graph, images, judge, costs, cache, args.longest, KINDS, refit=refit)
        tables = candidates.build()
        seconds[name] = round(time.process_time() - began, 1)
        print(name, seconds[name], "s,", len(tables.edges), "edges,", len(tables.pairs), "pairs", flush=True)
    return PlanBuilder(graph, tables, images, judge), seconds


def _plans(tables: CandidateTable, args: argparse.Namespace) -> list[PlanPath]:
    """Distinct plans, optimal for damages that are off by random factors, at random shares of the MACs."""
    generator, plans = random.Random(args.seed), dict[tuple[int, ...], PlanPath]()
    while len(plans) < args.plans:
        spread = generator.choice(SPREADS)
        edges = [
            edge.model_copy(update={"damage": (edge.damage + 1e-3) * math.exp(generator.gauss(0, spread))})
            if edge.action != "keep"
            else edge
            for edge in tables.edges
        ]
        limit = generator.uniform(0.35, 0.85) * tables.whole.latency_ms - tables.fixed.latency_ms
        path = solve(edges, len(tables.segments.paths), ResourceLimits(latency_ms=limit))
        if path is not None:
            plans.setdefault(path.edges, path)
    return list(plans.values())


def _measured(builder: PlanBuilder, path: PlanPath, number: int) -> dict[str, Any]:
    """The guesses for a plan, and its damage as built and after a whole refit."""
    guess = builder.tables.guess(path.edges)
    built = builder.build(path)
    damage = builder.damage_of(built)
    refitted = builder.damage_of(_refitted(builder, path))
    measured = {"built": damage, "damage": min(damage, refitted), **{name: getattr(guess, name) for name in GUESSES}}
    print(number, {name: round(value, 4) for name, value in measured.items()}, flush=True)
    return measured


def _refitted(builder: PlanBuilder, path: PlanPath) -> nn.Module:
    removed = [action.name for action in builder.actions(path) if isinstance(action, Remove)]
    images = _first(builder.fit, REFITTED_ON)
    return refit_(builder.graph, builder.build(path), builder.replacements(path), images, removed=removed)


def _spread_out(plans: list[PlanPath], measured: list[dict[str, Any]], args: argparse.Namespace) -> list[PlanPath]:
    """Plans from the least to the most damaged."""
    order = sorted(range(len(plans)), key=lambda index: measured[index]["damage"])
    step = max(1, len(order) // max(1, args.distilled))
    return [plans[index] for index in order[::step]][: args.distilled]


def _distilled(
    model: nn.Module,
    builder: PlanBuilder,
    path: PlanPath,
    images: Sequence[Batch],
    judge: Sequence[Batch],
    args: argparse.Namespace,
) -> dict[str, float]:
    """The guesses for a plan, and what a short distillation leaves."""
    guess = builder.tables.guess(path.edges)
    config = DistillConfig(seed=args.seed, rate=0.02, looks=1)
    result = distill(
        _refitted(builder, path), model, DistillData(images), validation=judge, budget=args.steps, config=config
    )
    figures = {"distilled": builder.damage_of(result.model), **{name: getattr(guess, name) for name in GUESSES}}
    print("distilled", {name: round(value, 4) for name, value in figures.items()}, flush=True)
    return figures


def _errors(plans: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """How far a guess is off, and how well it ranks."""
    logs = [math.log(max(plan[name], 1e-9) / max(plan["damage"], 1e-9)) for plan in plans]
    bias = statistics.median(logs)
    middle = statistics.median(plan["damage"] for plan in plans)
    deep = [plan for plan in plans if plan["damage"] >= middle]
    return {
        "n": len(plans),
        "median_abs_log": round(statistics.median(map(abs, logs)), 3),
        "bias_log": round(bias, 3),
        "spread_log": round(statistics.median(abs(log - bias) for log in logs), 3),
        "spearman": _rank(plans, name, "damage"),
        "spearman_damaged_half": _rank(deep, name, "damage"),
        "spearman_as_built": _rank(plans, name, "built"),
    }


def _ranks(plans: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {f"spearman_{name}": _rank(plans, name, "distilled") for name in GUESSES if len(plans) > 2}


def _rank(plans: Sequence[dict[str, Any]], first: str, second: str) -> float:
    return round(float(spearmanr([plan[first] for plan in plans], [plan[second] for plan in plans]).statistic), 3)


def _first(samples: Any, count: int) -> list[Batch]:
    """The first `count` samples, without their labels."""
    return [Batch(batch.args, batch.kwargs) for batch in first_samples(samples, count)]


def _arguments() -> argparse.Namespace:
    parser = network_parser(__doc__)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--judged", type=int, default=96)
    parser.add_argument("--longest", type=int, default=4)
    parser.add_argument("--plans", type=int, default=30)
    parser.add_argument("--distilled", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
