"""Does a short race tell which plan recovers best? The same contenders for a few steps at several rates, and for many.

    python benchmarks/race.py MODEL DATA [--weights F] [--mean ..] [--std ..] [--point 0.6] [--contenders 6]
        [--rung 50] [--rates 0.02,0.2] [--steps 200] [--images 4660] [--batch-size 128] [--precision fp32]
        --work WORK --out NAME.json

The contenders are those of `shoal compress --latency POINT` with a race of 16, every so many of them by damage after a
quick refit. Each learns for RUNG steps at each rate, looked at half-way and at the end, as in the race; then anew for
STEPS steps, with a rate of its own, as in the recovery that follows. The figures are divergences on validation, in
nats; Kendall's tau compares the ranks by damage and by each rung with those at the end. Finished contenders are kept in
WORK.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from rivals.command_line import Stages, data_of, network_parser, versions
from rivals.ground import Ground, unlabelled
from scipy.stats import kendalltau

from shoal.files.writing import write_text
from shoal.measure import machine
from shoal.pipeline import Budget, MeasureConfig, RecoveryConfig
from shoal.pipeline.context import build_context
from shoal.pipeline.plan_builder import PlanBuilder
from shoal.pipeline.plan_measure import MeasuredPlan
from shoal.pipeline.plan_race import Race
from shoal.pipeline.plan_shortlist import ShortlistMaker
from shoal.pipeline.planner import build_planner
from shoal.pipeline.recovery import RecoveryTask
from shoal.plan import Fold, Remove, Replace
from shoal.recover import DistillConfig, TrainingBudget
from shoal.sources import Data, load_model

_ENOUGH = 3000  # steps of a budget whose share is enough for a race of 16


def main() -> None:
    """Measure what is missing, print, keep the figures."""
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    data = data_of(args, args.data)
    model = load_model(args.model, args.weights).model.eval().to(memory_format=torch.channels_last)
    ground = Ground(model, unlabelled([data.calibration()], args.images), args.work, True)
    race = Race(task(ground, data, args, None, _ENOUGH), {})
    builder, plans = contenders(ground, race, args)
    rows = [row(plan, builder, ground, data, args) for plan in plans]
    document = {
        "command": f"python benchmarks/race.py ... --point {args.point} --rung {args.rung} --steps {args.steps}",
        "model": Path(args.model).name,
        "point": args.point,
        "rung": args.rung,
        "steps": args.steps,
        "rows": rows,
        "tau": taus(rows),
        "versions": versions(),
        "machine": machine("cpu").model_dump(mode="json"),
    }
    write_text(args.out, json.dumps(document, indent=1) + "\n")
    print(json.dumps(document["tau"]))


def task(ground: Ground, data: Data, args: argparse.Namespace, rate: float | None, steps: int) -> RecoveryTask:
    """A recovery of so many steps."""

    def training(epoch: int) -> Any:
        return data.calibration(augment=True, epoch=epoch, limit=args.images)

    settings = DistillConfig(channels_last=True, precision=args.precision, rate=rate)
    config = RecoveryConfig(TrainingBudget(steps=steps), settings, training, None, race=16)
    return RecoveryTask(config, ground.model, [], data.validation(), ground.fit_on, Stages())


def contenders(ground: Ground, race: Race, args: argparse.Namespace) -> tuple[PlanBuilder, list[MeasuredPlan]]:
    """Some of those that a race would have, from the least damaged to the most."""
    settings = MeasureConfig(images=args.images, channels_last=True)
    goal = Budget(latency=args.point)
    context = build_context(ground.model, ground.labelled, None, goal, settings, None, Stages())
    planner = build_planner(context, None, args.work / "tables")
    shortlist = ShortlistMaker(planner.meter, planner.meter.plan_budget(goal), race).make()
    ranked = sorted(shortlist.contenders, key=lambda plan: (plan.refit_damage or plan.damage, plan.damage))
    return planner.builder, ranked[:: max(1, len(ranked) // args.contenders)][: args.contenders]


def row(
    plan: MeasuredPlan, builder: PlanBuilder, ground: Ground, data: Data, args: argparse.Namespace
) -> dict[str, Any]:
    """What one contender comes to; from its file where it is there."""
    actions, network = builder.actions(plan.path), builder.build(plan.path)
    changes = [named(action) for action in actions]
    path = args.work / f"contender-{crc32(' '.join(changes).encode()):08x}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    climbs = {}
    for rate in args.rates:
        with tempfile.TemporaryDirectory() as folder:
            student = task(ground, data, args, rate, args.rung).paused(network, actions, Path(folder), args.rung)
            climbs[f"{rate:g}"] = [student.climb(step).divergence for step in (args.rung // 2, args.rung)]
    recovery = task(ground, data, args, None, args.steps).run(builder.refine(plan.path).network, actions).recovery
    found = {
        "changes": changes,
        "share": plan.latency_ratio,
        "damage": plan.damage,
        "refit_damage": plan.refit_damage,
        "rungs": climbs,
        "before": recovery.divergence_before,
        "rate": recovery.rate,
        "after": recovery.divergence_after,
    }
    write_text(path, json.dumps(found))
    print(json.dumps(found), flush=True)
    return found


def named(action: Remove | Replace | Fold) -> str:
    """What an action does, and to which blocks."""
    paths = action.paths if isinstance(action, Replace) else [action.path]
    return f"{type(action).__name__.lower()} {'+'.join(paths)}"


def taus(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How well each order agrees with that after the recovery."""
    after = [each["after"] for each in rows]
    orders = {
        "damage": [each["damage"] for each in rows],
        "damage after a refit": [each["refit_damage"] for each in rows],
    }
    for rate in rows[0]["rungs"]:
        orders[f"the rung at {rate}"] = [each["rungs"][rate][-1] for each in rows]
    return {name: float(kendalltau(values, after).statistic) for name, values in orders.items()}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = network_parser(__doc__)
    parser.add_argument("--point", type=float, default=0.6)
    parser.add_argument("--contenders", type=int, default=6)
    parser.add_argument("--rung", type=int, default=50)
    parser.add_argument("--rates", type=lambda text: [float(rate) for rate in text.split(",")], default=[0.02, 0.2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--images", type=int, default=4660)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="where tables and finished contenders are kept")
    return parser.parse_args()


if __name__ == "__main__":
    main()
