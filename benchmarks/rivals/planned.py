"""Shoal's own plan: keep, remove or replace, under a latency budget."""

from rivals.ground import Ground
from rivals.made import Made, Unreached
from shoal.errors import NotReachedError
from shoal.pipeline import Budget, MeasureConfig
from shoal.pipeline.context import build_context
from shoal.pipeline.planner import build_planner
from shoal.plan import Plan, Remove, Replace
from shoal.surgery import input_specs, signature_of


def planned(ground: Ground, target: float) -> Made:
    """The plan that `shoal.compress(latency=target)` takes; the tables are made once and shared by all targets.

    Where the ground has a trial, plans contend in a race before one is chosen, part of the budget of recovery.
    """
    images = sum(batch.size for batch in ground.calibration)
    goal = Budget(latency=target)
    settings = MeasureConfig(images=images, channels_last=ground.channels_last, longest=ground.longest)
    context = build_context(ground.model, ground.labelled, None, goal, settings, None, ground.progress)
    race = ground.trial() if ground.trial is not None else None
    try:
        result = build_planner(context, None, ground.folder / "tables").solve_budget(goal, race)
    except NotReachedError as error:
        raise Unreached(None, error.message) from error
    done = {
        "removed": [action.path for action in result.actions if isinstance(action, Remove)],
        "replaced": [" + ".join(action.paths) for action in result.actions if isinstance(action, Replace)],
        "notes": [result.message, *result.notes],
        "race": result.planning.race.model_dump(mode="json") if result.planning.race is not None else None,
    }
    plan = Plan(
        model=None,
        inputs=input_specs(ground.timed.take(2)),
        network=signature_of(context.graph.model, context.graph.chain),
        actions=list(result.actions),
    )
    return Made(result.model, done, plan)
