"""What does a gate cost? One training step with gates against one without, in turns, same depth, same batch.

    python benchmarks/epsilon_gate.py --out NAME.json [--device cuda] [--compile] [--bf16] [--depth 20] [--batch 128]

A step is forward, loss and backward (the optimiser is the same for both). `open` has all gates open, `closed` all
closed: branches still run forward and backward, so that this is what the gate itself costs, without what it saves.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

import torch
import torch.nn.functional as F
from torch import nn

from shoal.epsilon import epsilonize_
from shoal.files.writing import write_text
from shoal.measure import machine
from shoal.sources import load_model

EPSILON = {"plain": None, "open": 1e-9, "closed": 1e6}


def main() -> None:
    """Build three networks with the same weights, time them in turns, print the ratios."""
    args = arguments()
    torch.manual_seed(0)
    model = load_model(f"cifar-preact-resnet:{args.depth}").model.to(args.device).train()
    images = torch.randn(args.batch, 3, 32, 32, device=args.device)
    labels = torch.randint(0, 10, (args.batch,), device=args.device)
    if args.channels_last:
        model, images = model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    steps = {name: step_of(model, epsilon, images, labels, args) for name, epsilon in EPSILON.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.warmup):
        for step in steps.values():
            step()
    for turn in range(args.turns):
        order = list(steps) if turn % 2 else list(steps)[::-1]
        for name in order:
            times[name].append(timed(steps[name], args.device))
    rows = [row(name, times) for name in steps]
    for one in rows:
        low, high = one["ratio_quartiles"]
        print(
            f"{one['name']:<7} {one['median_ms']:.1f} ms; {one['ratio']:.3f} of the ungated step, turn by turn "
            f"(quartiles {low:.3f} to {high:.3f}, {args.turns} turns)"
        )
    document = {
        "command": f"python benchmarks/epsilon_gate.py {said(args)}",
        "rows": rows,
        "machine": machine(args.device).model_dump(mode="json"),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, json.dumps(document, indent=1) + "\n")


def step_of(
    model: nn.Module, epsilon: float | None, images: torch.Tensor, labels: torch.Tensor, args: argparse.Namespace
) -> Callable[[], None]:
    """One training step of a copy of the model."""
    network = copy.deepcopy(model)
    if epsilon is not None:
        for gate in epsilonize_(network, images[:2], epsilon):
            gate.means = False  # as in a run, which looks at them once an epoch
    network.train()
    runner = torch.compile(network) if args.compile else network

    def step() -> None:
        with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.bf16):
            loss = F.cross_entropy(runner(images).float(), labels)
        loss.backward()
        network.zero_grad(set_to_none=True)

    return step


def timed(step: Callable[[], None], device: str) -> float:
    """Milliseconds of one step."""
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if cuda:
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


def row(name: str, times: dict[str, list[float]]) -> dict[str, object]:
    """Median and quartiles; the ratio is taken turn by turn, so that a busy machine disturbs both sides alike."""
    ratios = [one / plain for one, plain in zip(times[name], times["plain"], strict=True)]
    low, _, high = quantiles(ratios, n=4)
    return {
        "name": name,
        "median_ms": median(times[name]),
        "ratio": median(ratios),
        "ratio_quartiles": [low, high],
        "turns": len(ratios),
    }


def said(args: argparse.Namespace) -> str:
    """The command line, without paths."""
    words = [f"--{name} {getattr(args, name)}" for name in ("depth", "batch", "device", "turns")]
    flags = [f"--{name.replace('_', '-')}" for name in ("compile", "bf16", "channels_last") if getattr(args, name)]
    return " ".join([*words, *flags])


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    for flag in ("--compile", "--bf16", "--channels-last"):
        parser.add_argument(flag, action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
