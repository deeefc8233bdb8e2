"""How far a ratio of two latencies can be trusted: the same pair timed again and again, by turns and by pairs.

    python benchmarks/clock.py [--runs 10] [--batch-size 32] [--pause 10] [--out results/clock.json]

Each run is a process of its own, as a user's is: it times a ResNet-20 and a ResNet-8 for CIFAR, without weights, first
by turns (blocks of forwards of each network in turn, the ratio of each turn, the median: what Shoal did before), then
by pairs (`shoal.measure.latency_ratios`). Every other run first allocates and frees large tensors, as reading data
does. The machine is left as noisy as it is.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from timeit import Timer
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoal.batches import Batch
from shoal.files.writing import write_text
from shoal.measure import latency_ratios, machine
from shoal.preserve import evaluating

TURNS = 20


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        stride = 1 if width_in == width else 2
        self.conv1, self.bn1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(width_in, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The sum, behind its activation."""
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


def resnet(blocks: int) -> nn.Module:
    """With so many blocks in each of the three stages."""
    widths = [16, *[width for width in (16, 32, 64) for _ in range(blocks)]]
    stages = [Block(width_in, width) for width_in, width in pairwise(widths)]
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def by_turns(original: nn.Module, network: nn.Module, x: Tensor, seconds: float) -> float:
    """The median over turns of the ratio of the blocks of one turn."""
    with evaluating(original), evaluating(network), torch.inference_mode():
        timers = [Timer(lambda model=model: model(x)) for model in (original, network)]
        single = [min(timer.repeat(2, 1)) for timer in timers]
        turns = min(TURNS, max(5, int(seconds / max(single))))
        counts = [max(1, round(seconds / turns / one)) for one in single]
        ratios = []
        for _ in range(turns):
            first, second = (timer.timeit(count) / count for timer, count in zip(timers, counts, strict=True))
            ratios.append(second / first)
    return statistics.median(ratios)


def one_run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both clocks on the same two networks."""
    torch.manual_seed(0)
    if arguments.large_tensors:
        torch.ones(31 * 2**20, dtype=torch.uint8)
    original, network, x = resnet(3), resnet(1), torch.rand(arguments.batch_size, 3, 32, 32)
    started = time.perf_counter()
    turns = by_turns(original, network, x, arguments.seconds / 2)
    between = time.perf_counter()
    ratio = latency_ratios(
        {"original": original, "network": network},
        Batch((x,)),
        reference="original",
        max_seconds=arguments.seconds,
    )["network"]
    return {
        "large_tensors": arguments.large_tensors,
        "load": os.getloadavg()[0],
        "by_turns": turns,
        "by_turns_seconds": between - started,
        "by_pairs": ratio.model_dump(mode="json"),
        "by_pairs_seconds": time.perf_counter() - between,
    }


def spread(ratios: list[float]) -> dict[str, float]:
    """How far apart they lie: the range and the standard deviation, as shares of the mean."""
    mean = statistics.fmean(ratios)
    return {
        "mean": mean,
        "lowest": min(ratios),
        "highest": max(ratios),
        "range": (max(ratios) - min(ratios)) / mean,
        "deviation": statistics.stdev(ratios) / mean,
    }


def main() -> None:
    """Runs, and what they come to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=15.0, help="for the pairs, at most; half of it for the turns")
    parser.add_argument("--pause", type=float, default=10.0, help="seconds between runs")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--single", action="store_true", help="one run, as JSON on stdout")
    parser.add_argument("--large-tensors", action="store_true", help="in a single run")
    arguments = parser.parse_args()
    if arguments.single:
        print(json.dumps(one_run(arguments)))
        return
    runs = []
    for index in range(arguments.runs):
        options = ["--batch-size", str(arguments.batch_size), "--seconds", str(arguments.seconds)]
        command = [sys.executable, __file__, "--single", *options, *(["--large-tensors"] if index % 2 else [])]
        runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        pairs = runs[-1]["by_pairs"]
        print(
            f"{index + 1}: load {runs[-1]['load']:.1f}; by turns {runs[-1]['by_turns']:.4f}; by pairs "
            f"{pairs['ratio']:.4f} ({pairs['low']:.4f} to {pairs['high']:.4f}), {pairs['clock']}",
            flush=True,
        )
        time.sleep(arguments.pause)
    document = {
        "batch_size": arguments.batch_size,
        "threads": torch.get_num_threads(),
        "machine": machine(torch.device("cpu")).model_dump(mode="json"),
        "by_turns": spread([run["by_turns"] for run in runs]),
        "by_pairs": spread([run["by_pairs"]["ratio"] for run in runs]),
        "runs": runs,
    }
    print(json.dumps({name: document[name] for name in ("by_turns", "by_pairs")}, indent=1))
    if arguments.out is not None:
        write_text(arguments.out, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
