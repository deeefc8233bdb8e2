"""Shoal's plan against rivals at the same measured latency, each recovered within the same budget.

    python benchmarks/recovery.py MODEL DATA [--weights F] [--mean ..] [--std ..] [--also DATA2] [--unlabelled DATA3]
        [--budget 5m] [--points 0.6,0.4]
        [--methods shoal,greedy,influence,practise,practise-distil,width,taylor,scratch]
        [--images 4660] [--batch-size 128] [--channels-last] [--adaptor-steps 100] [--try-plans 4] [--seed 0]
        [--work FOLDER] --out NAME.json

Points are shares of the original's latency. The cut networks are made as in frontier.py, on the calibration part of
DATA without labels; then each learns from the original on that part, augmented anew in each epoch, for the same budget:
with `shoal.recover.distill`, PRACTISE with its own tuning on features too (`practise`; `practise-distil`: the same cut,
our distillation). Of Shoal's plans the best few recover for a tenth of the budget each before one is chosen: part of
making the cut, as PRACTISE's scores are (100 steps for each block). `scratch` is the network of Shoal's plan with fresh
weights. Distillation chooses what comes out on the validation part of DATA; `practise` takes its last step, as
published. Test images are only measured on.

Finished cells are kept in --work, an interrupted distillation goes on from its checkpoint: the same command goes on.
Delete the folder of a cell (`point-0.6/recovered-greedy`) to have it again. A budget of time is that of this
machine: leave it in peace.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from rivals import Ground
from rivals.asking import Stages, answered, asked_parser, carry_out, data_of, given, spoken, versions
from rivals.cell import Place, Sets, versus
from rivals.ground import SLACK, unlabelled
from rivals.recovered import WAYS, Lessons, place_of, run_recovered
from rivals.recovered_table import lines
from rivals.together import side_by_side

from shoal.batches import Batch
from shoal.measure import machine
from shoal.pipeline import RecoveryConfig
from shoal.pipeline.recovery import RecoveryTask
from shoal.pipeline.recovery_probe import RecoveryProbe
from shoal.progress import ProgressCallback
from shoal.recover import DistillConfig, read_budget
from shoal.sources import Data, load_model
from shoal.store import RunFolder
from shoal.surgery import model_digest
from shoal.training.loaders import LoaderFactory


def main() -> None:
    """Read the command line, run what is missing, print a table, keep the figures."""
    carry_out(_arguments(), _run, lines)


def _run(args: argparse.Namespace) -> dict[str, Any]:
    sets = {name: data_of(args, spec) for name, spec in (("data", args.data), ("also", args.also)) if spec}
    extra = data_of(args, args.unlabelled) if args.unlabelled else None
    model = load_model(args.model, args.weights).model.eval()
    RunFolder(args.work, "recovery", _claim(args, model))
    calibration = unlabelled([sets["data"].calibration()], args.images)
    lessons, stages = _lessons(args, sets["data"], extra), Stages()
    trial = _trial(model, lessons, args.try_plans, calibration, stages)
    ground = Ground(model, calibration, args.work, args.channels_last, stages, args.adaptor_steps, trial)
    tests = Sets(ground, sets)
    found = [_point(ground, tests, lessons, args, point) for point in args.points]
    return {
        "command": _command(args),
        "network": model_digest(model),
        "data": {name: one.describe() | {"spec": spoken(one.spec)} for name, one in sets.items()},
        "unlabelled": extra.describe() | {"spec": spoken(extra.spec)} if extra is not None else None,
        "calibration": {
            "images": sum(batch.size for batch in calibration),
            "fitted_on": sum(batch.size for batch in ground.fit_on),
            "judged_on_with_blends": sum(batch.size for batch in ground.judge_on),
            "labels": "not used",
        },
        "budget": str(lessons.budget),
        "distillation": lessons.settings.to_dict(),
        "adaptor_steps": args.adaptor_steps,
        "plans_tried": args.try_plans,
        "counts_up_to": f"{SLACK} times the point, in turns with the original",
        "points": found,
        "versions": versions(),
        "machine": machine("cpu").model_dump(mode="json"),
    }


def _lessons(args: argparse.Namespace, data: Data, extra: Data | None) -> Lessons:
    budget = read_budget(args.budget)
    if budget is None:
        raise SystemExit("error: without a budget nothing is recovered. Run benchmarks/frontier.py.")
    return Lessons(
        training=_epochs(data, args.images),
        validation=data.validation(),
        budget=budget,
        unlabelled=_epochs(extra, None) if extra is not None else None,
        seed=args.seed,
        settings=DistillConfig(seed=args.seed, channels_last=args.channels_last),
    )


def _trial(
    model: torch.nn.Module, lessons: Lessons, plans: int, calibration: Sequence[Batch], progress: ProgressCallback
) -> RecoveryProbe | None:
    """How Shoal's plans that contend are told apart."""
    asked = RecoveryConfig(lessons.budget, lessons.settings, lessons.training, lessons.unlabelled, try_plans=plans)
    return RecoveryTask(asked, model, [], lessons.validation, calibration, progress).probe()


def _epochs(data: Data, limit: int | None) -> LoaderFactory:
    """The calibration part by epoch, augmented anew in each."""
    return lambda epoch: data.calibration(augment=True, epoch=epoch, limit=limit)


def _point(ground: Ground, tests: Sets, lessons: Lessons, args: argparse.Namespace, point: float) -> dict[str, Any]:
    """The cells of a point, those that are missing made now, and all its cut networks side by side."""
    cells = {}
    for method in args.methods:
        place = Place(args.work, point, method)
        kept = place_of(place).finished()
        print(f"{point:g} {method}: {'kept' if kept else 'running'}", flush=True)
        cells[method] = kept or run_recovered(ground, tests, place, lessons)
    together = side_by_side(ground, args.work, point)
    for method, cell in cells.items():
        if cell["reached"]:
            cell["meets_point_together"] = together["shares"][WAYS[method].cut] <= point * SLACK
            one, other = (place_of(Place(args.work, point, name)) for name in ("shoal", method))
            cell["versus_shoal"] = versus(one, other, list(tests.data))
    return {"point": point, "together": together, "cells": cells}


def _claim(args: argparse.Namespace, model: torch.nn.Module) -> dict[str, Any]:
    """All that decides a cell but its method and point: kept cells of another run must not be mixed in."""
    names = ("mean", "std", "images", "batch_size", "channels_last", "budget", "adaptor_steps", "try_plans", "seed")
    specs = {name: spoken(getattr(args, name)) for name in ("data", "also", "unlabelled")}
    there = {"threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    return {name: getattr(args, name) for name in names} | specs | there | {"network": model_digest(model)}


def _command(args: argparse.Namespace) -> str:
    """What was run, without the folders of this machine."""
    own = [f"--unlabelled {spoken(args.unlabelled)}"] if args.unlabelled else []
    own += [
        f"--budget {args.budget} --adaptor-steps {args.adaptor_steps} --try-plans {args.try_plans} --seed {args.seed}"
    ]
    return f"python benchmarks/recovery.py {' '.join([*given(args), *own])} --out {args.out.name}"


def _arguments() -> argparse.Namespace:
    parser = asked_parser(__doc__, "recovery", [0.6, 0.4], list(WAYS), list(WAYS))
    parser.add_argument("--unlabelled", help="extra data, of which only the images are learned from")
    parser.add_argument("--budget", default="5m", help="of each network's recovery: a time, or a number of steps")
    parser.add_argument("--adaptor-steps", type=int, default=100, help="of PRACTISE's scores, for each block")
    parser.add_argument("--try-plans", type=int, default=4, help="so many plans of Shoal's recover shortly first")
    parser.add_argument("--seed", type=int, default=0)
    return answered(parser, "recovery")


if __name__ == "__main__":
    main()
