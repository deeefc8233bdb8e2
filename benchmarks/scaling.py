"""How time grows with the number of blocks: trace, named removals, scan and plan of synthetic networks.

    python benchmarks/scaling.py --stages trace,blocks --depths 125,250,500,1000 --out benchmarks/results/scaling.json
    python benchmarks/scaling.py --network resnet --depths 27 --stages spans,tables,goal --out NAME.json

`spans` fits and measures all spans, as for a budget of MACs, from 1,000 samples, each damage as it is; `tables` does so
with the refit, the pairs and the latencies that a budget of latency needs; `goal` is another budget by the tables that
are there: solving, building, refitting, and the timing that confirms it.

Each stage runs once at each depth; wall and process CPU seconds are kept, since other processes slow down the wall
clock. The exponent is the slope of log CPU seconds over log depth, with its 95 % interval by the t distribution.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import nn

import shoal
from shoal.measure import machine
from shoal.pipeline import predict_plan
from shoal.sources import load_model

WIDTH = 16


class Block(nn.Module):
    """A residual MLP with a norm in front."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The stream and the branch."""
        return x + self.outer(torch.relu(self.inner(self.norm(x))))


class Convolutions(nn.Module):
    """Two convolutions with batch norms, and an activation after the addition."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
        self.one, self.two = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The sum, activated."""
        return torch.relu(x + self.two(self.second(torch.relu(self.one(self.first(x))))))


def mlp(depth: int) -> tuple[nn.Module, Callable[[int], torch.Tensor]]:
    """The network and what makes its inputs."""
    torch.manual_seed(0)
    blocks = [Block() for _ in range(depth)]
    for number, block in enumerate(blocks):  # of different worth, and tame in sum
        block.outer.weight.data.mul_((0.3 + number * 7919 % 13 / 13) * min(1.0, (30 / depth) ** 0.5))
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), *blocks, nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10))
    return model.eval(), lambda count: torch.randn(count, WIDTH)


def conv(depth: int) -> tuple[nn.Module, Callable[[int], torch.Tensor]]:
    """Likewise, of 8 x 8 images."""
    torch.manual_seed(0)
    blocks = [Convolutions() for _ in range(depth)]
    for block in blocks:
        nn.init.constant_(block.two.weight, 0.2)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)]
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), *blocks, *head)
    return model.eval(), lambda count: torch.randn(count, 3, 8, 8)


def resnet(depth: int) -> tuple[nn.Module, Callable[[int], torch.Tensor]]:
    """A ResNet for CIFAR with so many blocks in three stages (27: depth 56), of random weights, and its images."""
    torch.manual_seed(0)
    model = load_model(f"cifar-preact-resnet:{2 * max(3, depth // 3 * 3) + 2}").model
    return model.eval(), lambda count: torch.randn(count, 3, 32, 32)


NETWORKS = {"mlp": mlp, "conv": conv, "resnet": resnet}
_ALL_SAMPLES = 1000  # of `spans`, `tables` and `goal`, in mini-batches of 125


def run(stage: str, model: nn.Module, make: Callable[[int], torch.Tensor], tables: Path) -> None:
    """One stage on one network.

    Args:
        stage: one of those above.
        model: of this depth.
        make: makes so many inputs.
        tables: a folder of this network; `goal` finds in it what `tables` left.
    """
    if stage in ("spans", "tables", "goal"):
        torch.manual_seed(1)
        data, validation = [make(125) for _ in range(_ALL_SAMPLES // 125)], [make(125)]
        config = shoal.CompressConfig(images=_ALL_SAMPLES, table_refit=stage != "spans", tables=tables / "latency")
        if stage == "goal":
            shoal.compress(model, data, shoal.Budget(latency=0.6), validation=validation, config=config)
            return
        if stage == "spans":
            config = replace(config, tables=tables / "macs")
        goal = shoal.Budget(macs=0.5) if stage == "spans" else shoal.Budget(latency=0.5)
        predict_plan(model, data, goal, validation=validation, config=config)
        return
    if stage == "trace":
        shoal.trace(model, make(4))
        return
    data, validation = [make(64) for _ in range(4)], [make(64)]
    if stage == "scan":
        shoal.scan(model, data[:1], config=shoal.ScanConfig(layers=False))
        return
    first = next(name for name, module in model.named_children() if isinstance(module, Block | Convolutions))
    goal = shoal.Blocks((first,)) if stage == "blocks" else shoal.Budget(macs=0.5)
    shoal.compress(model, data, goal, validation=validation)


def exponent(depths: list[int], seconds: list[float]) -> dict[str, float | list[float]] | None:
    """The slope of log seconds over log depth with its 95 % interval; None of fewer than three depths."""
    if len(depths) < 3:
        return None
    fit = stats.linregress(np.log(depths), np.log(seconds))
    half = float(stats.t.ppf(0.975, len(depths) - 2) * fit.stderr)
    return {"slope": float(fit.slope), "interval": [float(fit.slope) - half, float(fit.slope) + half]}


def main() -> None:
    """Measure, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="mlp")
    parser.add_argument("--stages", default="trace,blocks,scan,plan")
    parser.add_argument("--depths", default="125,250,500,1000")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(options, Path(folder))


def measure(options: argparse.Namespace, folder: Path) -> None:
    """All stages at all depths; tables are kept in the folder meanwhile."""
    depths = [int(depth) for depth in options.depths.split(",")]
    results = []
    for stage in options.stages.split(","):
        run(stage, *NETWORKS[options.network](8), folder / "8")  # what is imported and looked up once
        rows = []
        for depth in depths:
            network = NETWORKS[options.network](depth)
            wall, cpu = time.perf_counter(), time.process_time()
            run(stage, *network, folder / str(depth))
            rows.append({"depth": depth, "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu})
            print(f"{stage:8} {depth:6} blocks {rows[-1]['wall']:8.1f} s wall {rows[-1]['cpu']:8.1f} s CPU", flush=True)
        fit = exponent(depths, [row["cpu"] for row in rows])
        print(f"{stage:8} exponent {fit}")
        results.append({"stage": stage, "rows": rows, "exponent": fit})
        if options.out is not None:
            here = machine(torch.device("cpu")).model_dump(mode="json")
            plain = {"network": options.network, "results": results, "machine": here}
            options.out.write_text(json.dumps(plain, indent=1) + "\n")


if __name__ == "__main__":
    main()
