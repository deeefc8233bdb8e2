"""Does `lose` land on the share asked for, at no loss? Against the plain network, and against epsilon by hand.

    python benchmarks/epsilon_share.py --work FOLDER --out NAME.json                           # the digits
    python benchmarks/epsilon_share.py --work FOLDER --out NAME.json --images CIFAR.npz        # CIFAR-10 at 16 x 16

Every run of a seed has the same initial weights, order of the data and number of epochs, and side supervision. Each
leaves a file in --work; the same command goes on where it stopped. The npz holds x_train, y_train, x_test and y_test,
images of (32, 32, 3) uint8.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from shoal.epsilon.recipes import DecayPlan, RatePlan, recipe
from shoal.epsilon.samples import Augmentation
from shoal.epsilon.trainer import EpsilonConfig, EpsilonTrainer
from shoal.files.writing import write_text
from shoal.measure import compare, machine, predictions
from shoal.measure.quality import Predictions
from shoal.sources import Data, load_data, load_model
from shoal.sources.builtin_networks import digits_resnet

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def main() -> None:
    """Run what is missing, compare, print, write down."""
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    data = cifar(args) if args.images else load_data("digits", batch_size=450)
    labels = ["plain", *(f"lose-{share:g}" for share in args.lose), *(f"epsilon-{value:g}" for value in args.epsilon)]
    rows = []
    for seed in args.seeds:
        for label in labels:
            run(label, seed, data, args)
        rows += [row(label, seed, args) for label in labels[1:]]
    for entry in rows:
        print(json.dumps({key: value for key, value in entry.items() if key != "epsilons"}), flush=True)
    document = {
        "network": network_name(args),
        "epochs": settings_of("plain", 0, args).recipe.epochs,
        "decay": args.decay,
    }
    document |= {"rows": rows, "machine": machine("cpu").model_dump(mode="json")}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, json.dumps(document, indent=1) + "\n")


def cifar(args: argparse.Namespace) -> Data:
    """--count images of train and all of test, averaged down to 16 x 16 pixels."""
    path = args.work / f"cifar10-16-{args.count}.npz"
    if not path.exists():
        arrays = np.load(args.images)
        parts = {}
        for part, count in (("train", args.count), ("test", None)):
            order = np.random.default_rng(0).permutation(len(arrays[f"y_{part}"]))[:count]
            pixels = arrays[f"x_{part}"][order].transpose(0, 3, 1, 2)
            halves = pixels.reshape(*pixels.shape[:2], 16, 2, 16, 2).mean(axis=(3, 5))
            parts |= {f"x_{part}": np.rint(halves).astype(np.uint8), f"y_{part}": arrays[f"y_{part}"][order]}
        np.savez(path, **parts)
    return load_data(f"npz:{path}", mean=MEAN, std=STD, seed=0, batch_size=100)


def network_name(args: argparse.Namespace) -> str:
    """The specification of the network."""
    return f"cifar-preact-resnet:{args.depth}" if args.images else "digits-resnet"


def network_of(seed: int, args: argparse.Namespace) -> nn.Module:
    """The network with the random weights of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return load_model(network_name(args)).model if args.images else digits_resnet(pretrained=False)


def settings_of(label: str, seed: int, args: argparse.Namespace) -> EpsilonConfig:
    """The recipe for the digits, or a short one for CIFAR-10, with epsilon as the label has it."""
    if args.images:
        plan = replace(recipe("cifar10"), epochs=args.epochs, rate=RatePlan(0.1, settle=args.epochs // 3))
        plan = replace(plan, augmentation=Augmentation(pad=2, flip=True), freeze_after=2)
    else:
        plan = recipe("digits")
    plan = replace(plan, decay=DecayPlan(args.decay or plan.decay.start), evaluate_every=10_000)
    kind, _, value = label.partition("-")
    epsilon = {"plain": 0.0, "lose": "auto"}.get(kind) if kind != "epsilon" else float(value)
    share = float(value) if kind == "lose" else None
    return EpsilonConfig(plan, epsilon, lose=share, freeze_after=plan.freeze_after, seed=seed)


def run(label: str, seed: int, data: Data, args: argparse.Namespace) -> None:
    """One run, unless its file is there."""
    path = args.work / f"{label}-{seed}.json"
    if path.exists():
        return
    started = time.perf_counter()
    trainer = EpsilonTrainer(network_of(seed, args), data, settings_of(label, seed, args))
    trainer.train()
    answers = predictions(trainer.prunable.pruned().eval(), data.test())
    target = answers.target if answers.target is not None else torch.empty(0)
    save_file({"log_probs": answers.log_probs, "target": target}, str(args.work / f"{label}-{seed}.safetensors"))
    outcome = {
        "lost": len(trainer.prunable.removed),
        "blocks": len(trainer.prunable.graph.chain),
        "epsilons": [epoch.epsilon for epoch in trainer.rows],
        "lost_in": [epoch.epoch for epoch in trainer.rows for _ in epoch.taken_out],
        "seconds": time.perf_counter() - started,
    }
    write_text(path, json.dumps(outcome))
    print(f"{label} seed {seed}: {outcome['lost']} of {outcome['blocks']} lost", flush=True)


def row(label: str, seed: int, args: argparse.Namespace) -> dict:
    """One run against the plain network and those with epsilon by hand: positive is worse, in shares of test."""
    here = answers_of(label, seed, args)
    outcome = json.loads((args.work / f"{label}-{seed}.json").read_text(encoding="utf-8"))
    others = ["plain", *(f"epsilon-{value:g}" for value in args.epsilon if label.startswith("lose"))]
    against = {}
    for other in others:
        comparison = compare(answers_of(other, seed, args), here, "test")
        against[other] = [comparison.top1_drop, comparison.top1_drop_interval]
    top1 = float((here.log_probs.argmax(dim=1) == here.target).double().mean())
    return {"run": label, "seed": seed, "top1": top1, "n": len(here.log_probs), "against": against, **outcome}


def answers_of(label: str, seed: int, args: argparse.Namespace) -> Predictions:
    """What the network of a run says about test."""
    kept = load_file(str(args.work / f"{label}-{seed}.safetensors"))
    return Predictions(kept["log_probs"], kept["target"])


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for finished runs")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=Path, help="CIFAR-10 as npz, instead of the digits")
    parser.add_argument("--count", type=int, default=10_000, help="of its training images")
    parser.add_argument("--depth", type=int, default=38)
    parser.add_argument("--epochs", type=int, default=15, help="on CIFAR-10")
    parser.add_argument("--decay", type=float, help="instead of the recipe's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lose", type=float, nargs="*", default=[0.3, 0.5, 0.7])
    parser.add_argument("--epsilon", type=float, nargs="*", default=[2.2], help="by hand")
    return parser.parse_args()


if __name__ == "__main__":
    main()
