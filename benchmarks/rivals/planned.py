"""Shoal's own plan: keep, remove or replace, under a latency budget."""

from rivals.ground import Ground
from rivals.made import Made, Unreached
from shoal.errors import NotReachedError
from shoal.pipeline import Budget, MeasureConfig
from shoal.pipeline.context import build_context
from shoal.pipeline.planner import build_planner
from shoal.plan import Plan, Remove, Replace
from shoal.scanning import divergence
from shoal.surgery import input_specs, signature_of


def planned(ground: Ground, target: float) -> Made:
    """The plan that `shoal.compress(latency=target)` takes; the tables are made once and shared by all targets.

    Where the ground has a trial, the best few plans recover for a while before one is chosen, as with `try_plans`.
    """
    images = sum(batch.size for batch in ground.calibration)
    goal, settings = (
        Budget(latency=target),
        MeasureConfig(images=images, channels_last=ground.channels_last),
    )
    told = build_context(ground.model, ground.calibration, None, goal, settings, divergence, ground.progress)
    try:
        found = build_planner(told, None, ground.folder / "tables").solve_budget(goal, ground.trial)
    except NotReachedError as error:
        raise Unreached(None, error.message) from error
    done = {
        "removed": [one.path for one in found.actions if isinstance(one, Remove)],
        "replaced": [" + ".join(one.paths) for one in found.actions if isinstance(one, Replace)],
        "notes": [found.message, *found.notes],
    }
    anatomy = told.graph
    plan = Plan(
        model=None,
        inputs=input_specs(ground.timed.take(2)),
        network=signature_of(anatomy.model, anatomy.chain),
        actions=list(found.actions),
    )
    return Made(found.model, done, plan)
