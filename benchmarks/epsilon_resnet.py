"""epsilon-ResNet against the plain network at the same number of epochs, with and without side supervision.

    python benchmarks/epsilon_resnet.py --data cifar10-jpeg.tar.xz --work runs --preset small --out NAME.json
    python benchmarks/epsilon_resnet.py --data ... --work runs --preset paper --device cuda --bf16 --out NAME.json

Every run keeps a checkpoint in --work; the same command resumes, also within a run. `--minutes` stops the script in
time (exit code 3: some runs are unfinished). `--jobs` trains several networks at once, each in a process of its own.
Presets: `short` takes minutes on two cores; `small` is all of CIFAR-10 at 16 x 16 pixels, depths 20 to 56, three values
of epsilon, with the paper's schedule scaled to the number of epochs; `paper` is the whole set of the paper for CIFAR-10
by its own recipe. In every preset the plain networks get the epochs of the epsilon runs, which the paper did not give
them. Paper: Yu, Yu, Ramalingam 2018, arXiv:1804.01661.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from shoal.epsilon.finish import TrainRunInfo, finish
from shoal.epsilon.recipes import DecayPlan, Falls, RatePlan, recipe
from shoal.epsilon.samples import Augmentation
from shoal.epsilon.trainer import EpsilonConfig, EpsilonTrainer, with_overrides
from shoal.files.writing import write_text
from shoal.measure import compare, machine, mean_interval
from shoal.measure.quality import Predictions
from shoal.sources import load_data, load_model

KINDS = ("plain", "plain-side", "epsilon")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Task:
    """One training run of the set."""

    depth: int
    kind: str
    seed: int
    epsilon: float = 0.0

    @property
    def label(self) -> str:
        """The kind, with the value of epsilon where there is one."""
        return f"{self.kind}-{self.epsilon:g}" if self.kind == "epsilon" else self.kind

    @property
    def name(self) -> str:
        """The folder it runs in."""
        return f"resnet{self.depth}-{self.label}-{self.seed}"


class OutOfTimeError(Exception):
    """The minutes are over; the checkpoint is written."""


def main() -> int:
    """Run what is missing, write down what there is."""
    args = arguments()
    deadline = time.monotonic() + 60 * args.minutes if args.minutes else float("inf")
    args.work.mkdir(parents=True, exist_ok=True)
    source = data_file(args)
    tasks = tasks_of(args)
    if args.only is not None:
        tasks = [task for task in tasks if task.name == args.only]
    if args.jobs > 1:
        run_in_processes(tasks, args)
    else:
        run_in_turn(tasks, args, source, deadline)
    if args.only is not None:
        return 0
    document = summary(tasks, args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, json.dumps(document, indent=1) + "\n")
    for line in document["table"]:
        print(line)
    return 0 if document["done"] == len(tasks) else 3


def tasks_of(args: argparse.Namespace) -> list[Task]:
    """All runs of the set, the seeds beyond the first only at the depth that has several; the longest first."""
    tasks = []
    for depth in sorted(args.depths, reverse=True):
        for seed in args.seeds if args.seeds_at in (None, depth) else args.seeds[:1]:
            for kind in args.kinds:
                values = args.epsilon if kind == "epsilon" else [0.0]
                tasks += [Task(depth, kind, seed, value) for value in values]
    return tasks


def run_in_turn(tasks: list[Task], args: argparse.Namespace, source: Path, deadline: float) -> None:
    """Train one network after the other, until the deadline."""
    for task in tasks:
        try:
            run(task, args, source, deadline)
        except OutOfTimeError:
            print(f"{task.name}: the same command resumes this run", flush=True)
            break


def run_in_processes(tasks: list[Task], args: argparse.Namespace) -> None:
    """Train `--jobs` networks at a time, each by this very command in a process of its own."""
    waiting = [task for task in tasks if not (args.work / task.name / "result.json").exists()]
    running: list[subprocess.Popen] = []
    while waiting or running:
        while waiting and len(running) < args.jobs:
            task = waiting.pop(0)
            command = [sys.executable, *sys.argv, "--jobs", "1", "--only", task.name]
            running.append(subprocess.Popen(command))
        time.sleep(0.2)
        running = [process for process in running if process.poll() is None]


def settings_of(task: Task, args: argparse.Namespace) -> EpsilonConfig:
    """The paper's recipe, or the same compressed into minutes: a larger decay, a rate that falls at the end."""
    plan = recipe("cifar10")
    if args.preset == "short":
        rate = RatePlan(0.1, settle=args.settle or max(1, args.epochs // 3))
        plan = replace(plan, rate=rate, decay=DecayPlan(args.decay), freeze_after=args.freeze_after)
    elif args.preset == "small":
        settle = args.settle or max(1, args.epochs // 3)
        plan = replace(plan, rate=scaled(plan.rate, args.epochs / 200, settle), decay=DecayPlan(args.decay))
        plan = replace(plan, augmentation=Augmentation(pad=args.size // 8, flip=True), freeze_after=args.freeze_after)
    plan = with_overrides(plan, epochs=args.epochs, evaluate_every=args.evaluate_every, batch_size=args.batch_size)
    return EpsilonConfig(
        plan,
        task.epsilon,
        side=task.kind != "plain",
        freeze_after=None if args.faithful else plan.freeze_after,
        seed=task.seed,
        precision="bf16" if args.bf16 else "fp32",
        channels_last=args.channels_last,
        compile=args.compile,
    )


def scaled(rate: RatePlan, factor: float, settle: int) -> RatePlan:
    """The paper's schedule in `factor` of its epochs (the plain networks of the paper have 200)."""

    def shorter(falls: Falls) -> Falls:
        return tuple((max(1, round(epoch * factor)), value) for epoch, value in falls)

    return RatePlan(rate.start, shorter(rate.falls), shorter(rate.after_loss), settle)


def run(task: Task, args: argparse.Namespace, source: Path, deadline: float) -> None:
    """One run, to its end or to the deadline; nothing where it is done already."""
    folder = args.work / task.name
    if (folder / "result.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    spec = f"npz:{source}"
    data = load_data(spec, mean=MEAN, std=STD, seed=0, batch_size=100)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        model = load_model(f"cifar-preact-resnet:{task.depth}").model

    def progress(stage: str, done: int, total: int) -> None:
        if done and done % max(1, total // 20) == 0:
            print(f"{task.name}: epoch {done} of {total}, {stage}", flush=True)
        if done < total and time.monotonic() > deadline:
            raise OutOfTimeError

    if time.monotonic() > deadline:
        raise OutOfTimeError
    one = EpsilonTrainer(model, data, settings_of(task, args), folder=folder, device=args.device, progress=progress)
    one.train()
    trained = finish(
        one, TrainRunInfo(f"cifar-preact-resnet:{task.depth}", "cifar10-jpeg", "benchmarks/epsilon_resnet.py")
    )
    target = trained.predictions.target
    kept_tensors = {"log_probs": trained.predictions.log_probs} | ({"target": target} if target is not None else {})
    save_file(kept_tensors, str(folder / "predictions.safetensors"))
    record = trained.record.model_dump(mode="json")
    write_text(folder / "record.json", json.dumps(record))
    kept = {key: record[key] for key in ("lost", "settled", "seconds", "warnings", "steps", "samples")}
    kept["rows"] = [
        {key: row[key] for key in ("epoch", "rate", "loss", "train_error", "test_error", "alive", "seconds")}
        for row in record["rows"]
    ]
    write_text(folder / "result.json", json.dumps(kept))


def summary(tasks: list[Task], args: argparse.Namespace) -> dict[str, object]:
    """Every finished run, the means over seeds, and each epsilon run against the plain ones of its seed."""
    found = {task: result for task in tasks if (result := _result(args.work / task.name)) is not None}
    table, groups = [], []
    for depth in args.depths:
        labels = dict.fromkeys(task.label for task in tasks if task.depth == depth)
        for label in labels:
            runs = [found[task] for task in tasks if task in found and (task.depth, task.label) == (depth, label)]
            if runs:
                groups.append(_group(depth, label, runs))
                table.append(_line(groups[-1]))
    pairs = [_pair(task, args) for task in found if task.kind == "epsilon"]  # None until its plain ones are done
    table += [_pair_line(pair) for pair in pairs if pair]
    return {
        "command": "python benchmarks/epsilon_resnet.py " + " ".join(_said(args)),
        "preset": args.preset,
        "epochs": args.epochs,
        "images": args.images,
        "done": len(found),
        "of": len(tasks),
        "groups": groups,
        "pairs": [pair for pair in pairs if pair],
        "runs": {task.name: result for task, result in found.items()},
        "machine": machine(args.device).model_dump(mode="json"),
        "table": table,
    }


def _group(depth: int, kind: str, runs: list[dict]) -> dict[str, object]:
    errors = [1 - one["settled"]["plain"]["quality"]["top1"] for one in runs]
    interval = mean_interval(errors) if len(errors) > 1 else None
    blocks = runs[0]["settled"]["whole"]["blocks"]
    return {
        "depth": depth,
        "kind": kind,
        "seeds": len(runs),
        "n": runs[0]["settled"]["plain"]["quality"]["n"],
        "errors": errors,
        "error": sum(errors) / len(errors),
        "error_interval": interval,
        "blocks": blocks,
        "lost": [len(one["lost"]) for one in runs],
        "params": [one["settled"]["plain"]["cost"]["params"] for one in runs],
        "macs": [one["settled"]["plain"]["cost"]["macs"] for one in runs],
        "hours": [one["seconds"] / 3600 for one in runs],
        "seconds_first_epoch": [one["rows"][min(1, len(one["rows"]) - 1)]["seconds"] for one in runs],
        "seconds_last_epoch": [one["rows"][-2]["seconds"] if len(one["rows"]) > 1 else 0.0 for one in runs],
    }


def _pair(task: Task, args: argparse.Namespace) -> dict[str, object] | None:
    ours = _predictions(args.work / task.name)
    found: dict[str, object] = {"depth": task.depth, "seed": task.seed, "epsilon": task.epsilon}
    for kind in ("plain", "plain-side"):
        other = args.work / replace(task, kind=kind, epsilon=0.0).name
        if not (other / "result.json").exists():
            return None
        found[kind] = compare(_predictions(other), ours, "test").model_dump(mode="json")
    return found


def _line(group: dict) -> str:
    interval = group["error_interval"]
    said = f" [{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]" if interval else ""
    return (
        f"depth {group['depth']:>3} {group['kind']:<11} error {100 * group['error']:.2f} %{said} over {group['seeds']} "
        f"seeds, n = {group['n']}; lost {group['lost']} of {group['blocks']}; "
        f"epoch {group['seconds_first_epoch'][0]:.1f} -> {group['seconds_last_epoch'][0]:.1f} s"
    )


def _pair_line(pair: dict) -> str:
    parts = []
    for kind in ("plain", "plain-side"):
        one = pair[kind]
        low, high = one["top1_drop_interval"]
        parts.append(f"against {kind} {100 * one['top1_drop']:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}]")
    where = f"depth {pair['depth']:>3} seed {pair['seed']}"
    return f"{where}: error of epsilon {pair['epsilon']:g} {'; '.join(parts)}"


def _result(folder: Path) -> dict | None:
    path = folder / "result.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _predictions(folder: Path) -> Predictions:
    kept = load_file(str(folder / "predictions.safetensors"))
    return Predictions(kept["log_probs"], kept.get("target"))


def data_file(args: argparse.Namespace) -> Path:
    """The images as one npz in --work: --images of the train part, all of test; unpacked once."""
    path = args.work / f"cifar10-{args.size}-{args.images or 'all'}-{args.test_images or 'all'}.npz"
    if path.exists():
        return path
    train, test = _unpacked(args.data)
    generator = np.random.default_rng(0)

    def some(part: tuple[np.ndarray, np.ndarray], count: int | None) -> tuple[np.ndarray, np.ndarray]:
        rows = generator.permutation(len(part[0]))[: count or None]
        return smaller(part[0][rows], args.size), part[1][rows]

    x_train, y_train = some(train, args.images)
    x_test, y_test = some(test, args.test_images)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


def smaller(images: np.ndarray, size: int) -> np.ndarray:
    """Images (n, 3, 32, 32) averaged down to `size` x `size` pixels, rounded."""
    if size == images.shape[-1]:
        return images
    blocks = images.reshape(*images.shape[:2], size, images.shape[2] // size, size, images.shape[3] // size)
    return np.rint(blocks.mean(axis=(3, 5))).astype(np.uint8)


def _unpacked(archive: Path) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Images (n, 3, 32, 32) and labels of both parts, from an archive of `PART/CLASS/NNNN.jpg`."""
    from PIL import Image

    found: dict[str, list[tuple[str, np.ndarray]]] = {"train": [], "test": []}
    with tarfile.open(archive) as packed:
        for member in packed:
            parts = Path(member.name).parts
            if member.isfile() and member.name.endswith(".jpg") and len(parts) >= 3 and parts[-3] in found:
                with Image.open(io.BytesIO(packed.extractfile(member).read())) as image:
                    pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
                found[parts[-3]].append((parts[-2], pixels))
    classes = sorted({name for name, _ in found["train"]})
    return tuple(
        (np.stack([pixels for _, pixels in part]), np.array([classes.index(name) for name, _ in part]))
        for part in (found["train"], found["test"])
    )


def _said(args: argparse.Namespace) -> list[str]:
    names = (
        "preset",
        "depths",
        "seeds",
        "seeds_at",
        "size",
        "epochs",
        "images",
        "test_images",
        "epsilon",
        "decay",
        "freeze_after",
        "settle",
        "batch_size",
    )
    said = [(name, getattr(args, name)) for name in names]
    words = [f"--{name.replace('_', '-')} {_plain(value)}" for name, value in said if value is not None]
    flags = ("bf16", "channels_last", "compile", "faithful")
    return [*words, *(f"--{flag.replace('_', '-')}" for flag in flags if getattr(args, flag))]


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def arguments() -> argparse.Namespace:
    """The command line, with what the chosen set leaves open filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="archive of PART/CLASS/NNNN.jpg")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", "--set", choices=("short", "small", "paper"), default="short")
    parser.add_argument("--depths", type=int, nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seeds-at", type=int, help="the one depth that gets all seeds; the others get the first")
    parser.add_argument("--size", type=int, choices=(8, 16, 32), help="pixels of a side, averaged down from 32")
    parser.add_argument("--jobs", type=int, default=1, help="networks trained at once")
    parser.add_argument("--only", help="this run alone, by name, without a summary")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--images", type=int, help="of train")
    parser.add_argument("--test-images", type=int)
    parser.add_argument("--epsilon", type=float, nargs="+")
    parser.add_argument("--decay", type=float, help="not in the preset `paper`")
    parser.add_argument("--freeze-after", type=int, default=3, help="not in the preset `paper`")
    parser.add_argument("--settle", type=int, help="last epochs, of a falling rate with open gates; not in `paper`")
    parser.add_argument("--faithful", action="store_true")
    parser.add_argument("--evaluate-every", type=int, default=5)
    parser.add_argument("--batch-size", type=int, help="instead of the recipe's: small ones make more steps")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after so many; 0: never")
    parser.add_argument("--device", default="cpu")
    for flag in ("--bf16", "--channels-last", "--compile"):
        parser.add_argument(flag, action="store_true")
    args = parser.parse_args()
    preset = {
        "short": {"depths": [20], "epochs": 30, "images": 10_000, "test_images": 2_000, "decay": 5e-3, "size": 32},
        "small": {"depths": [20, 38, 56], "epochs": 60, "decay": 6e-4, "size": 16, "epsilon": [2.0, 2.5, 3.0]},
        "paper": {"depths": [110, 200, 500, 752], "epochs": 1000, "size": 32},
    }[args.preset]
    for name, value in {"epsilon": [2.5], **preset}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.preset == "small" and args.seeds_at is None:
        args.seeds_at = 38
    return args


if __name__ == "__main__":
    sys.exit(main())
