"""How long must a gate stay closed before it can be frozen? Does it ever open again if nobody freezes it?

    python benchmarks/epsilon_freeze.py --out NAME.json [--seeds 0 1 2] [--epsilon 2.0] [--decay 0.01] [--epochs 40]

Trains the embedded digits network in the faithful mode, where no block is taken out, and reads off the gates of every
epoch: of the blocks that were closed on every step of k epochs in a row, which share opened again later?
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from shoal.epsilon.recipes import DecayPlan, recipe
from shoal.epsilon.trainer import EpsilonConfig, EpsilonTrainer
from shoal.files.writing import write_text
from shoal.measure import machine, wilson
from shoal.sources import load_data
from shoal.sources.builtin_networks import digits_resnet

LONGEST = 12


def main() -> None:
    """Train, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epsilon", type=float, default=2.0)
    parser.add_argument("--decay", type=float, default=1e-2)
    parser.add_argument("--epochs", type=int, default=40)
    args = parser.parse_args()
    histories, started = [], time.perf_counter()
    for seed in args.seeds:
        histories += closed_by_epoch(seed, args)
        print(f"seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    rows = [survival(histories, k) for k in range(1, LONGEST + 1)]
    for row in rows:
        low, high = row["interval"] or (0.0, 1.0)
        print(
            f"closed for {row['epochs']:>2} epochs: {row['reached']:>3} blocks, {row['reopened']:>3} opened again "
            f"[{100 * low:.0f}, {100 * high:.0f}] %; {row['lasting']} of them for good in the end"
        )
    words = f"--seeds {' '.join(map(str, args.seeds))} --epsilon {args.epsilon} --decay {args.decay}"
    document = {
        "command": f"python benchmarks/epsilon_freeze.py {words} --epochs {args.epochs}",
        "rows": rows,
        "blocks": len(histories),
        "machine": machine("cpu").model_dump(mode="json"),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, json.dumps(document, indent=1) + "\n")


def closed_by_epoch(seed: int, args: argparse.Namespace) -> list[list[bool]]:
    """For every block whether it was closed on all steps of each epoch."""
    plan = recipe("digits")
    rate = replace(plan.rate, settle=0)
    plan = replace(plan, epochs=args.epochs, rate=rate, decay=DecayPlan(args.decay), evaluate_every=10_000)
    torch.manual_seed(seed)
    run = EpsilonTrainer(
        digits_resnet(pretrained=False),
        load_data("digits", batch_size=450),
        EpsilonConfig(plan, args.epsilon, freeze_after=None, seed=seed),
    )
    run.train()
    paths = [block.path for block in run.prunable.graph.chain.removable]
    return [[path in row.closed for row in run.rows] for path in paths]


def survival(histories: list[list[bool]], epochs: int) -> dict[str, object]:
    """Of the blocks that were once closed for so many epochs in a row: how many were open again in a later one."""
    reached = reopened = lasting = 0
    for history in histories:
        at = _first_streak(history, epochs)
        if at is None:
            continue
        reached += 1
        reopened += not all(history[at:])
        lasting += history[-1]
    interval = wilson(reopened, reached) if reached else None
    return {"epochs": epochs, "reached": reached, "reopened": reopened, "lasting": lasting, "interval": interval}


def _first_streak(history: list[bool], epochs: int) -> int | None:
    """The epoch behind the first streak of that length."""
    streak = 0
    for number, closed in enumerate(history):
        streak = streak + 1 if closed else 0
        if streak == epochs:
            return number + 1
    return None


if __name__ == "__main__":
    main()
