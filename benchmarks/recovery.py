"""Shoal's plan against rivals at the same measured latency, each recovered within the same budget.

    python benchmarks/recovery.py MODEL DATA [--weights F] [--mean ..] [--std ..] [--also DATA2] [--unlabelled DATA3]
        [--small MODEL2] [--small-weights F2] [--budget 5m] [--points 0.6,0.4] [--methods shoal,small,...]
        [--images 4660] [--batch-size 128] [--channels-last] [--longest 9] [--adaptor-steps 100] [--gate-steps 150]
        [--race 16] [--precision fp32] [--seed 0] [--work FOLDER] --out NAME.json

Points are shares of the original's latency. The cut networks are made as in frontier.py, on the calibration part of
DATA without labels; then each learns from the original on that part, augmented anew in each epoch, for the same budget:
with `shoal.recover.distill`, PRACTISE with its own tuning on features too (`practise`; `practise-distil`: the same cut,
our distillation). The weight of features, and PRACTISE's rate, are tuned for each method by one rule
(rivals/tuning.py). The race of Shoal's plans counts into the budget, as it does for users: what its winner learned
is where recovery goes on. The rivals' choosing does not: PRACTISE's scores (100 steps for each block), TinyFusion's
gates (150 steps). `small` is a smaller network trained by others, as it
is; `small-distil` the same, distilled; both stand at every point whose share they meet. `scratch` is the network of
Shoal's plan with fresh weights. Distillation chooses what comes out on the validation part of DATA; `practise` takes
its last step, as published. Test images are only measured on.

Finished cells are kept in --work, an interrupted distillation goes on from its checkpoint: the same command goes on.
Delete the folder of a cell (`point-0.6/recovered-greedy`) to have it again. A budget of time is that of this
machine: leave it in peace.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rivals import Ground
from rivals.cell import Place, Sets, versus
from rivals.command_line import (
    Stages,
    carry_out,
    common_arguments,
    comparison_parser,
    data_of,
    parse,
    public_spec,
    versions,
)
from rivals.ground import SLACK, unlabelled
from rivals.recovered import WAYS, RecoverySetup, place_of, run_recovered
from rivals.recovered_table import lines
from rivals.together import side_by_side

from shoal.batches import Batch
from shoal.measure import machine
from shoal.pipeline import RecoveryConfig
from shoal.pipeline.plan_race import Race
from shoal.pipeline.recovery import RecoveryTask
from shoal.progress import ProgressCallback
from shoal.recover import DistillConfig, read_budget
from shoal.sources import Data, load_model
from shoal.store import RunFolder
from shoal.surgery import model_digest
from shoal.training.loaders import LoaderFactory

# Options of this script that decide results.
_OWN = ("adaptor_steps", "gate_steps", "longest", "race", "precision", "seed")


def main() -> None:
    """Read the command line, run what is missing, print a table, keep the figures."""
    carry_out(_arguments(), _run, lines)


def _run(args: argparse.Namespace) -> dict[str, Any]:
    sets = {name: data_of(args, spec) for name, spec in (("data", args.data), ("also", args.also)) if spec}
    extra = data_of(args, args.unlabelled) if args.unlabelled else None
    model = in_layout_(load_model(args.model, args.weights).model.eval(), args)
    RunFolder(args.work, "recovery", _claim(args, model))
    ground, setup = _ground(args, model, sets["data"], extra)
    tests = Sets(ground, sets)
    points = [_point(ground, tests, setup, args, point) for point in args.points]
    return {
        "command": _command(args),
        "network": model_digest(model),
        "data": {name: data.describe() | {"spec": public_spec(data.spec)} for name, data in sets.items()},
        "unlabelled": extra.describe() | {"spec": public_spec(extra.spec)} if extra is not None else None,
        "calibration": {
            "images": sum(batch.size for batch in ground.calibration),
            "fitted_on": sum(batch.size for batch in ground.fit_on),
            "judged_on_with_blends": sum(batch.size for batch in ground.judge_on),
            "labels": "not used",
        },
        "budget": str(setup.budget),
        "distillation": setup.settings.to_dict(),
        "tuned": {path.stem: json.loads(path.read_text()) for path in sorted((args.work / "tuned").glob("*.json"))},
        "adaptor_steps": args.adaptor_steps,
        "gate_steps": args.gate_steps,
        "race_at_most": args.race,
        "counts_up_to": f"{SLACK} times the point, in turns with the original",
        "points": points,
        "versions": versions(),
        "machine": machine("cpu").model_dump(mode="json"),
    }


def in_layout_(model: torch.nn.Module, args: argparse.Namespace) -> torch.nn.Module:
    """The model with its weights, and so what it computes, laid out as --channels-last says; in place."""
    return model.to(memory_format=torch.channels_last) if args.channels_last else model


def _ground(
    args: argparse.Namespace, model: torch.nn.Module, data: Data, extra: Data | None
) -> tuple[Ground, RecoverySetup]:
    """What every method starts from, and what everybody recovers on."""
    calibration, stages = unlabelled([data.calibration()], args.images), Stages()
    setup = _setup(args, data, extra)
    ground = Ground(
        model,
        calibration,
        args.work,
        args.channels_last,
        stages,
        adaptor_steps=args.adaptor_steps,
        gate_steps=args.gate_steps,
        longest=args.longest,
        small=in_layout_(load_model(args.small, args.small_weights).model.eval(), args) if args.small else None,
        mixed=args.precision == "bf16",
        trial=_trial(model, setup, args.race, calibration, stages),
    )
    return ground, setup


def _setup(args: argparse.Namespace, data: Data, extra: Data | None) -> RecoverySetup:
    budget = read_budget(args.budget)
    if budget is None:
        raise SystemExit("error: without a budget nothing is recovered. Run benchmarks/frontier.py.")
    return RecoverySetup(
        training=_epochs(data, args.images),
        validation=data.validation(),
        budget=budget,
        unlabelled=_epochs(extra, None) if extra is not None else None,
        seed=args.seed,
        settings=DistillConfig(seed=args.seed, channels_last=args.channels_last, precision=args.precision),
    )


def _trial(
    model: torch.nn.Module, setup: RecoverySetup, plans: int, calibration: Sequence[Batch], progress: ProgressCallback
) -> Callable[[], Race] | None:
    """Begins a race of Shoal's plans, a new one for each point."""
    config = RecoveryConfig(setup.budget, setup.settings, setup.training, setup.unlabelled, race=plans)
    task = RecoveryTask(config, model, [], setup.validation, calibration, progress)
    return (lambda: Race(task, {})) if plans > 1 else None


def _epochs(data: Data, limit: int | None) -> LoaderFactory:
    """The calibration part by epoch, augmented anew in each."""
    return lambda epoch: data.calibration(augment=True, epoch=epoch, limit=limit)


def _point(ground: Ground, tests: Sets, setup: RecoverySetup, args: argparse.Namespace, point: float) -> dict[str, Any]:
    """The cells of a point, those that are missing made now, and all its cut networks side by side."""
    cells = {}
    for method in args.methods:
        place = Place(args.work, point, method)
        kept = place_of(place).finished()
        print(f"{point:g} {method}: {'kept' if kept else 'running'}", flush=True)
        cells[method] = kept or run_recovered(ground, tests, place, setup)
    together = side_by_side(ground, args.work, point)
    for method, cell in cells.items():
        if cell["reached"]:
            cell["meets_point_together"] = together["shares"][WAYS[method].cut] <= point * SLACK
            shoal, rival = (place_of(Place(args.work, point, name)) for name in ("shoal", method))
            cell["versus_shoal"] = versus(shoal, rival, list(tests.data))
    return {"point": point, "together": together, "cells": cells}


def _claim(args: argparse.Namespace, model: torch.nn.Module) -> dict[str, Any]:
    """All that decides a cell but its method and point: kept cells of another run must not be mixed in."""
    names = ("mean", "std", "images", "batch_size", "channels_last", "budget", *_OWN)
    specs = {name: public_spec(getattr(args, name)) for name in ("data", "also", "unlabelled")}
    machine = {"threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    return {name: getattr(args, name) for name in names} | specs | machine | {"network": model_digest(model)}


def _command(args: argparse.Namespace) -> str:
    """What was run, without the folders of this machine."""
    words = common_arguments(args)
    words += [f"--unlabelled {public_spec(args.unlabelled)}"] if args.unlabelled else []
    words += [f"--small {public_spec(args.small)}"] if args.small else []
    words += [f"--small-weights {args.small_weights.name}"] if args.small_weights else []
    words += [f"--{name.replace('_', '-')} {getattr(args, name)}" for name in ("budget", *_OWN)]
    return f"python benchmarks/recovery.py {' '.join(words)} --out {args.out.name}"


def _arguments() -> argparse.Namespace:
    parser = comparison_parser(__doc__, "recovery", [0.6, 0.4], list(WAYS), list(WAYS))
    parser.add_argument("--unlabelled", help="extra data, of which only the images are learned from")
    parser.add_argument("--small", help="the model that people would take instead")
    parser.add_argument("--small-weights", type=Path)
    parser.add_argument("--budget", default="5m", help="of each network's recovery: a time, or a number of steps")
    parser.add_argument("--adaptor-steps", type=int, default=100, help="of PRACTISE's scores, for each block")
    parser.add_argument("--gate-steps", type=int, default=150, help="of TinyFusion's gates, for each point")
    parser.add_argument("--longest", type=int, default=9, help="blocks in the longest span that Shoal may replace")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the distillation's steps")
    parser.add_argument("--race", type=int, default=16, help="how many of Shoal's plans contend, at most")
    parser.add_argument("--seed", type=int, default=0)
    return parse(parser, "recovery")


if __name__ == "__main__":
    main()
