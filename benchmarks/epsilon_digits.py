"""Which epsilon and decay should the embedded digits have? Chosen on validation, confirmed on test.

    python benchmarks/epsilon_digits.py --work FOLDER --out NAME.json [--seeds 0 1 2 3 4]

First every setting trains on the calibration part alone and is looked at on validation. The choice is the setting with
the best mean accuracy there among those that lose at least 70 % of the blocks with every seed. Then the chosen setting
and the plain network train on all of train, with the same seeds and epochs, and test is read once. Every run leaves a
file in --work; the same command goes on where it stopped. `--only choose` ends before test is touched.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from shoal.epsilon.recipes import DecayPlan, recipe
from shoal.epsilon.trainer import EpsilonConfig, EpsilonTrainer
from shoal.files.writing import write_text
from shoal.measure import compare, machine, mean_interval, predictions
from shoal.measure.quality import Predictions
from shoal.sources import Data, load_data
from shoal.sources.builtin_networks import digits_resnet

WANTED = 0.7


@dataclass(frozen=True)
class Setting:
    """What is tried."""

    epsilon: float
    decay: float
    epochs: int

    @property
    def name(self) -> str:
        """For files."""
        return f"epsilon-{self.epsilon:g}-decay-{self.decay:g}-epochs-{self.epochs}"


GRID = [
    Setting(epsilon, decay, epochs)
    for epsilon, decay, epochs in (
        (2.0, 1e-2, 60),
        (2.2, 1e-2, 60),
        (2.5, 1e-2, 60),
        (2.0, 1.5e-2, 60),
        (2.0, 1e-2, 80),
        (2.2, 1e-2, 80),
    )
]


def main() -> None:
    """Choose, confirm, print, write down."""
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    whole = load_data("digits", batch_size=450)
    part = without_validation(whole)
    looked = {setting: [trained(setting, seed, part, args, "chosen-on") for seed in args.seeds] for setting in GRID}
    document: dict[str, object] = {
        "command": f"python benchmarks/epsilon_digits.py --seeds {' '.join(map(str, args.seeds))}",
        "validation": whole.parts[1].size,
        "test": whole.parts[2].size,
        "tried": [row(setting, runs) for setting, runs in looked.items()],
    }
    choice = best(looked)
    document["chosen"] = asdict(choice) if choice else None
    if choice and args.only != "choose":
        plain = replace(choice, epsilon=0.0)
        document["confirmed"] = [confirmed(choice, plain, seed, whole, args) for seed in args.seeds]
        drops = [one["drop"]["top1_drop"] for one in document["confirmed"]]
        document["mean_drop"] = sum(drops) / len(drops)
        document["mean_drop_interval"] = mean_interval(drops) if len(drops) > 1 else None
    document["machine"] = machine("cpu").model_dump(mode="json")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, json.dumps(document, indent=1) + "\n")


def without_validation(data: Data) -> Data:
    """Calibration to train on, validation in the place of test."""
    calibration, validation, _ = data.parts
    nothing = replace(validation, rows=validation.rows[:0])
    return replace(data, parts=(calibration, nothing, validation))


def trained(setting: Setting, seed: int, data: Data, args: argparse.Namespace, where: str) -> dict:
    """One run: blocks lost, accuracy on the third part of `data`, its answers, seconds."""
    path = args.work / f"{where}-{setting.name}-seed-{seed}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    plan = replace(recipe("digits"), epochs=setting.epochs, decay=DecayPlan(setting.decay), evaluate_every=10_000)
    # Ten steps an epoch with and without the validation part: decay goes by steps.
    samples = sum(one.size or 0 for one in data.parts[:2])
    plan = replace(plan, batch_size=min(128, samples // 10))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = digits_resnet(pretrained=False)
    started = time.perf_counter()
    settings = EpsilonConfig(plan, setting.epsilon, side=setting.epsilon > 0, freeze_after=plan.freeze_after, seed=seed)
    run = EpsilonTrainer(model, data, settings)
    run.train()
    said = predictions(run.prunable.plain().eval(), data.test())
    blocks = len(run.prunable.graph.chain.removable)
    target = said.target if said.target is not None else torch.empty(0)
    found = {
        "seed": seed,
        "lost": len(run.prunable.removed),
        "blocks": blocks,
        "top1": float((said.log_probs.argmax(dim=1) == target).double().mean()),
        "seconds": time.perf_counter() - started,
        "log_probs": said.log_probs.tolist(),
        "target": target.tolist(),
    }
    write_text(path, json.dumps(found))
    print(
        f"{where} {setting.name} seed {seed}: {found['lost']} of {blocks} lost, top-1 {found['top1']:.4f}", flush=True
    )
    return found


def row(setting: Setting, runs: list[dict]) -> dict[str, object]:
    """One line of the table."""
    top1 = [one["top1"] for one in runs]
    return {
        **asdict(setting),
        "lost": [one["lost"] for one in runs],
        "blocks": runs[0]["blocks"],
        "top1": top1,
        "mean_top1": sum(top1) / len(top1),
    }


def best(looked: dict[Setting, list[dict]]) -> Setting | None:
    """Enough blocks lost with every seed, then the best mean accuracy, then the fewer epochs."""
    fit = [one for one, runs in looked.items() if min(run["lost"] / run["blocks"] for run in runs) >= WANTED]
    return max(fit, key=lambda one: (row(one, looked[one])["mean_top1"], -one.epochs), default=None)


def confirmed(choice: Setting, plain: Setting, seed: int, data: Data, args: argparse.Namespace) -> dict:
    """The chosen setting and the plain network of the same seed and epochs, on test."""
    ours, theirs = (trained(one, seed, data, args, "test-of") for one in (choice, plain))
    return {
        "seed": seed,
        "lost": ours["lost"],
        "blocks": ours["blocks"],
        "top1": ours["top1"],
        "plain_top1": theirs["top1"],
        "drop": compare(_answers(theirs), _answers(ours), "test").model_dump(mode="json"),
        "seconds": ours["seconds"],
        "plain_seconds": theirs["seconds"],
    }


def _answers(found: dict) -> Predictions:
    return Predictions(torch.tensor(found["log_probs"]), torch.tensor(found["target"]))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for finished runs")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", choices=("choose",))
    return parser.parse_args()


if __name__ == "__main__":
    main()
