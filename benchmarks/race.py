"""Does the beginning of a recovery tell which plan recovers best? Contenders learn to the end, looked at on the way.

    python benchmarks/race.py MODEL DATA [--weights F] [--mean ..] [--std ..] [--point 0.2] [--contenders 6]
        [--looks 25,50,100,200,500] [--rate 0.3] [--images 4660] [--batch-size 128] [--precision fp32]
        --work WORK --out NAME.json

The contenders are the first of those that `shoal compress --latency POINT` would have in a race of 16. Each learns as
in a recovery of as many steps as the last look has, once as it was built and once from a quick refit, and is compared
with the original on validation at each look, in nats. Kendall's tau compares the order at each look with the order at
the end: by the divergence itself, and by what it comes to at the end if it goes on falling by the same power of the
steps as between the last two looks. Finished contenders are kept in WORK.
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
from shoal.pipeline.learning_curve import extrapolated
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
    builder, plans = contenders(ground, Race(task(ground, data, args, _ENOUGH), {}), args)
    rows = [row(plan, refit, builder, ground, data, args) for plan in plans for refit in (False, True)]
    document = {
        "command": f"python benchmarks/race.py ... --point {args.point} --looks {','.join(map(str, args.looks))}",
        "model": Path(args.model).name,
        "point": args.point,
        "looks": args.looks,
        "rows": rows,
        "tau": taus(rows, args.looks),
        "versions": versions(),
        "machine": machine("cpu").model_dump(mode="json"),
    }
    write_text(args.out, json.dumps(document, indent=1) + "\n")
    print(json.dumps(document["tau"]))


def task(ground: Ground, data: Data, args: argparse.Namespace, steps: int) -> RecoveryTask:
    """A recovery of so many steps."""

    def training(epoch: int) -> Any:
        return data.calibration(augment=True, epoch=epoch, limit=args.images)

    settings = DistillConfig(channels_last=True, precision=args.precision, rate=args.rate)
    config = RecoveryConfig(TrainingBudget(steps=steps), settings, training, None, race=16)
    return RecoveryTask(config, ground.model, [], data.validation(), ground.fit_on, Stages())


def contenders(ground: Ground, race: Race, args: argparse.Namespace) -> tuple[PlanBuilder, list[MeasuredPlan]]:
    """The first of those that a race would have."""
    settings = MeasureConfig(images=args.images, channels_last=True, longest=args.longest)
    goal = Budget(latency=args.point)
    context = build_context(ground.model, ground.labelled, None, goal, settings, None, Stages())
    planner = build_planner(context, None, args.work / "tables")
    shortlist = ShortlistMaker(planner.meter, planner.meter.plan_budget(goal), race).make()
    return planner.builder, shortlist.contenders[: args.contenders]


def row(
    plan: MeasuredPlan, refit: bool, builder: PlanBuilder, ground: Ground, data: Data, args: argparse.Namespace
) -> dict[str, Any]:
    """What one contender comes to; from its file where it is there."""
    actions = builder.actions(plan.path)
    changes = [named(action) for action in actions]
    code = crc32(f"{' '.join(changes)} {refit} {args.looks} {args.rate}".encode())
    path = args.work / f"contender-{code:08x}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    network = builder.quick_refit(plan.path) if refit else builder.build(plan.path)
    with tempfile.TemporaryDirectory() as folder:
        student = task(ground, data, args, args.looks[-1]).paused(network, actions, Path(folder), args.looks[-1])
        results = [student.climb(look) for look in args.looks]
    found = {
        "changes": changes,
        "origin": plan.origin,
        "refit": refit,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "share": plan.latency_ratio,
        "damage": plan.refit_damage if refit else plan.damage,
        "before": results[0].divergence_before,
        "divergences": [result.divergence for result in results],
    }
    write_text(path, json.dumps(found))
    print(json.dumps(found), flush=True)
    return found


def named(action: Remove | Replace | Fold) -> str:
    """What an action does, and to which blocks."""
    paths = action.paths if isinstance(action, Replace) else [action.path]
    return f"{type(action).__name__.lower()} {'+'.join(paths)}"


def taus(rows: Sequence[dict[str, Any]], looks: Sequence[int]) -> dict[str, float]:
    """How well each order agrees with that at the end."""
    orders = {"damage": [row["damage"] for row in rows]}
    for index, look in enumerate(looks[:-1]):
        orders[f"step {look}"] = [row["divergences"][index] for row in rows]
        if index:
            curves = [list(zip(looks, row["divergences"], strict=True))[: index + 1] for row in rows]
            orders[f"step {look}, extrapolated"] = [extrapolated(curve, looks[-1]) for curve in curves]
    after = [row["divergences"][-1] for row in rows]
    return {name: float(kendalltau(values, after).statistic) for name, values in orders.items()}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = network_parser(__doc__)
    parser.add_argument("--point", type=float, default=0.2)
    parser.add_argument("--contenders", type=int, default=6)
    parser.add_argument(
        "--looks", type=lambda text: [int(part) for part in text.split(",")], default=[25, 50, 100, 200, 500]
    )
    parser.add_argument("--rate", type=float, default=0.3, help="at which all learn")
    parser.add_argument("--longest", type=int, default=5, help="blocks that one replacement takes the place of")
    parser.add_argument("--images", type=int, default=4660)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="where tables and finished contenders are kept")
    return parser.parse_args()


if __name__ == "__main__":
    main()
