"""What the sweep costs against the plain way, on one network and by depth.

    python benchmarks/sweep.py MODEL DATA [--weights F] [--mean ..] [--std ..] [--images 600] --out NAME.json
    python benchmarks/sweep.py --depths 10,25,50,100,200,400 --out NAME.json

The plain way: one whole forward per candidate, the block physically removed, same batch, threads, dtype and inference
mode, no hooks. Both ways take turns in one run; times are medians of the rounds.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rivals.command_line import data_of
from torch import Tensor, nn

from shoal.batches import Batch, batches, logits_of
from shoal.blocks import BlockGraph, analyze
from shoal.blocks.prefix_cache import PrefixCache
from shoal.files.writing import write_text
from shoal.measure import machine, read_predictions
from shoal.preserve import evaluating, swapped
from shoal.scanning.batched_candidates import stacking_agrees
from shoal.scanning.candidates import block_candidates
from shoal.scanning.sweep import outputs_of
from shoal.sources import load_model


def loss_of(output: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of every sample; without labels, minus the log-probability of class 0."""
    said = read_predictions(output, batch.target)
    return said.loss if said.loss is not None else -said.log_probs[:, 0].double()


def plain(anatomy: BlockGraph, data: list[Batch]) -> dict[str, Tensor]:
    """One whole forward per candidate and mini-batch, with the block physically gone."""
    found = {}
    for path, remainder in anatomy.shortcut_modules.items():
        with swapped(anatomy.model, {path: remainder}), evaluating(anatomy.model):
            found[path] = torch.cat([loss_of(logits_of(anatomy.model(*one.args)), one) for one in data])
    return found


def cached(anatomy: BlockGraph, data: list[Batch], stack: int) -> dict[str, Tensor]:
    """The sweep."""
    prefix = PrefixCache(anatomy)
    candidates = [one for one in block_candidates(anatomy, {}) if one.ablation == "block"]
    losses: dict[str, list[Tensor]] = {candidate.path: [] for candidate in candidates}
    with evaluating(anatomy.model):
        for batch in data:
            prefix.record(batch)
            if stack > 1 and not stacking_agrees(anatomy, {}, batch, list(losses), stack):
                stack = 1
            for candidate, output in outputs_of(anatomy, prefix, candidates, stack):
                losses[candidate.path].append(loss_of(output, batch))
    return {path: torch.cat(parts) for path, parts in losses.items()}


def compare(model: nn.Module, data: list[Batch], rounds: int, stack: int) -> dict[str, object]:
    """Times and largest differences of the ways, in turns."""
    anatomy = analyze(model, data[0].take(2))
    paths = list(anatomy.shortcut_modules)
    ways: dict[str, Callable[[], dict[str, Tensor]]] = {
        "plain": lambda: plain(anatomy, data),
        "sweep": lambda: cached(anatomy, data, 1),
        "stacked": lambda: cached(anatomy, data, stack),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    losses: dict[str, dict[str, Tensor]] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            losses[name] = way()
            times[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    return {
        "blocks": len(paths),
        "samples": sum(batch.size for batch in data),
        "batch": data[0].size,
        "stack": stack,
        "rounds": rounds,
        "seconds": medians,
        "all_seconds": times,
        "sweep_over_plain": medians["sweep"] / medians["plain"],
        "stacked_over_plain": medians["stacked"] / medians["plain"],
        "sweep_bitwise_equal": all(torch.equal(losses["plain"][path], losses["sweep"][path]) for path in paths),
        "stacked_largest_relative": max(
            float(
                (
                    (losses["stacked"][path] - losses["plain"][path]).abs() / losses["plain"][path].abs().clamp(min=1)
                ).max()
            )
            for path in paths
        ),
    }


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest deviation, relative to the expected loss where that is above 1 nat."""
    return float(((found - expected).abs() / expected.abs().clamp(min=1)).max())


class Block(nn.Module):
    """A pre-activation block, cheap enough that 400 of them run on a laptop."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """X + F(x)."""
        return x + 0.1 * self.conv(torch.relu(self.norm(x)))


def tower(depth: int, width: int = 16) -> nn.Module:
    """A chain of `depth` equal blocks."""
    torch.manual_seed(depth)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), *(Block(width) for _ in range(depth)), *head).eval()


def by_depth(depths: list[int], rounds: int) -> dict[str, object]:
    """Seconds of each way by depth, and the exponents of seconds = a * depth^b."""
    data = [Batch((torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0)),))]
    rows = []
    for depth in depths:
        compare(tower(2), data, 1, 16)  # warm up
        rows.append(compare(tower(depth), data, rounds, 16))
        print(depth, {way: round(seconds, 3) for way, seconds in rows[-1]["seconds"].items()}, flush=True)
    exponents = {}
    for way in ("plain", "sweep", "stacked"):
        seconds = [row["seconds"][way] for row in rows]
        exponents[way] = float(np.polyfit(np.log(depths), np.log(seconds), 1)[0])
    return {"rows": rows, "exponents": exponents}


def main() -> None:
    """Read the command line, run, print, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("data", nargs="?")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--mean")
    parser.add_argument("--std")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--stack", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--depths")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.depths:
        document = by_depth([int(one) for one in args.depths.split(",")], args.rounds)
        print("exponents", document["exponents"])
    else:
        source = data_of(args, args.data)
        data, count = [], 0
        for batch in batches(source.test()):
            data.append(batch.take(args.images - count))
            count += data[-1].size
            if count >= args.images:
                break
        document = compare(load_model(args.model, args.weights).model, data, args.rounds, args.stack)
        print(json.dumps({key: value for key, value in document.items() if key != "all_seconds"}, indent=1))
    document["machine"] = machine("cpu").model_dump(mode="json")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
