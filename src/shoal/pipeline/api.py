"""compress(): measure what each block is worth, choose, remove or replace, recover, prove, measure what came out."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from shoal.batches import Batch, check_one_purpose, device_of, is_read_once
from shoal.blocks.prefix_cache import restart_notes
from shoal.deprecated import Keywords, former_keywords
from shoal.errors import DataError, NotReachedError, UsageError, check_no_overlap, expect_type, naming_memory_shortage
from shoal.intake import check_network, is_compiled, plain
from shoal.pipeline.config import CompressConfig
from shoal.pipeline.context import CompressContext, build_context, materialize
from shoal.pipeline.data_splits import with_mixup
from shoal.pipeline.goals import (
    DEFAULT_GOAL,
    GOAL_KEYS,
    GOAL_OPTIONS,
    Budget,
    ExactOnly,
    Goal,
    MaxDrop,
    ParetoPoint,
    check_options,
    parse_goal,
)
from shoal.pipeline.greedy import GreedyRemoval, RemovalChoice
from shoal.pipeline.naming import removal_notes
from shoal.pipeline.outcome import FirstBatchLoader, measure_outcome
from shoal.pipeline.plan_checkpoint import load_plan, plan_fingerprint, plan_state, rebuild, save_plan
from shoal.pipeline.plan_race import Race, remaining, settings_after, since_race
from shoal.pipeline.planner import build_planner, split_data
from shoal.pipeline.race_store import RaceStore
from shoal.pipeline.recovery import (
    RACE_PLANS,
    REASONS_TO_SKIP,
    RecoveryConfig,
    RecoveryTask,
    check_recovery,
    normalize_recovery,
    skip_or_raise,
    with_self_data,
)
from shoal.pipeline.refinement import HeldBackDamage, Refinement
from shoal.pipeline.result import CompressedModel, CompressResult
from shoal.plan import Fold, Plan
from shoal.preserve import own_, shared_copy
from shoal.progress import Callbacks, ProgressCallback, as_callbacks, former_callbacks
from shoal.record import Certificate, metric_drop
from shoal.recover import DistillConfig, TrainingBudget, read_budget
from shoal.surgery import certify, fold, input_specs, remove_blocks, signature_of
from shoal.tasks import dense_copy, restore_usual
from shoal.training.processes import are_several, from_main, leads, share_tensors_
from shoal.workers import as_workers

Value = TypeVar("Value")
_CONFIGURED = ("damage", "output", "latency_from", "tables", "fold")
FORMER_KEYWORDS = (
    *(*GOAL_KEYS, *GOAL_OPTIONS, *_CONFIGURED),
    *("eval", "recover", "settings", "provenance", "journal", "progress"),
)


def from_former_keywords(former: Keywords, keywords: Keywords) -> Keywords:
    """Today's keywords of compress() for those of version 0.1.0: a goal, a configuration and callbacks.

    Raises:
        UsageError: former and new ones for the same, or goals that do not go together.
    """
    typed: Keywords = {}
    request = {name: former[name] for name in (*GOAL_KEYS, *GOAL_OPTIONS) if name in former}
    if request:
        typed["goal"] = parse_goal(request)
    typed |= {now: former[name] for name, now in (("eval", "test"), ("recover", "recovery")) if name in former}
    configured = {name: former[name] for name in _CONFIGURED if name in former}
    if former.get("provenance") is not None:
        configured["run_info"] = former["provenance"]
    if configured or former.get("settings") is not None:
        typed["config"] = CompressConfig.of(former.get("settings"), **configured)
    typed |= former_callbacks(former)
    check_no_overlap(typed, keywords)
    return {**keywords, **typed}


@former_keywords(
    FORMER_KEYWORDS,
    from_former_keywords,
    "write compress(model, calibration, goal=shoal.Budget(latency=0.5), test=..., recovery=..., "
    "config=shoal.CompressConfig(...), callbacks=...)",
)
@naming_memory_shortage()
def compress(
    model: nn.Module,
    calibration: Iterable[Any],
    goal: Goal | None = None,
    *,
    validation: Iterable[Any] | None = None,
    test: Iterable[Any] | None = None,
    recovery: RecoveryConfig | TrainingBudget | str | int | None = None,
    config: CompressConfig | None = None,
    callbacks: Callbacks | ProgressCallback | None = None,
) -> CompressResult:
    """Make a copy of `model` shallower, prove and measure what was done.

    With a `Budget`, a `ParetoPoint`, or a `MaxDrop` that allows replacement, blocks are kept, removed, or replaced in
    spans by modules fitted in closed form: the plan of least damage under the budget, or the fastest within the drop.
    Otherwise blocks are removed and nothing else.

    Args:
        model: any network with residual blocks; it is left as it was.
        calibration: mini-batches to choose on (labels are not needed).
        goal: what is asked for: `RemoveBlocks`, `MaxDrop`, `Blocks`, `ExactOnly`, `Budget` or `ParetoPoint`; by default
            as many blocks as possible with at most a drop of one point.
        validation: mini-batches that a drop is judged on; defaults to the calibration data (recorded as a warning).
        test: mini-batches for the record, read once; defaults to the calibration data (recorded as a warning).
        recovery: afterwards distill from the original, without labels, for this time (`10m`, `90s`) or number of steps
            (2000); a `RecoveryConfig` says more. Needs `validation`.
        config: how candidates are measured, what damage is, folding, tables.
        callbacks: progress and journal; a function is called with (stage, done, total).

    Returns:
        The new network, its plan and its record; `result.record.reached` tells whether the goal was.

    Raises:
        UsageError: arguments that do not go together.
        NotReachedError: nothing could be removed at all.
        UnknownBlockError, SurgeryError: a block or pattern that does not fit.
        DataError, NonFiniteError, ModelRaisedError: data, weights or model at fault.
    """
    started = time.perf_counter()
    check_network(model)
    goal, config, callbacks = _as_goal(goal), _as_config(config), as_callbacks(callbacks)
    check_options(goal, _options_set(config, recovery))
    warnings = [*config.run_info.warnings, *_missing(test, validation, goal), *_uncompiled(model)]
    usual = plain(model)
    check_one_purpose(calibration=calibration, validation=validation, evaluation=test)
    loader = FirstBatchLoader(test) if test is not None else None
    samples, judged = materialize(calibration, validation, config.measure, device_of(usual), by_plan=goal.by_plan)
    model = dense_copy(config.outputs.known(usual).task, usual)
    usable, messages = _usable_recovery(normalize_recovery(recovery), model, calibration, validation, samples, goal)
    context = build_context(
        model, samples, judged, goal, config.measure, config.damage, callbacks.progress, config.outputs
    )
    context = replace(context, workers=as_workers(config.workers))
    usable, left_out = _differentiable(usable, context)
    messages += left_out
    run = _Run(context, config, calibration if not is_read_once(calibration) else samples, usable)
    compressed = run.recovered(run.begun(callbacks))
    warnings += [*messages, *run.messages]
    if config.fold:
        compressed = run.folded(compressed)
    callbacks.progress("measuring on test", 0, 1)
    record = run.once(lambda: measure_outcome(context, compressed, loader or FirstBatchLoader(samples)))
    if isinstance(goal, ExactOnly) and not config.fold:
        _check_proved(record.certificate)
    info = config.run_info
    facts = {
        "command": info.command,
        "model": info.model or type(usual).__name__,
        "data": info.data,
        "seed": info.seed,
        "goal": goal.to_dict(),
        "notes": compressed.notes,
        "warnings": [*warnings, *restart_notes(context.graph), *record.warnings],
        "seconds": time.perf_counter() - started,
    }
    restore_usual(compressed.model)
    return CompressResult(compressed.model, run.plan(compressed), record.model_copy(update=facts), run.example)


@dataclass
class _Run:
    """One call of compress(), step by step; each takes a network and returns the next.

    Args:
        context: all that a choice is made from.
        config: how.
        training: what recovery learns from where it names nothing else.
        recovery: how to recover; None for not at all.
    """

    context: CompressContext
    config: CompressConfig
    training: Iterable[Any]
    recovery: RecoveryConfig | None

    def __post_init__(self) -> None:
        self.example = self.context.chosen_on[0].take(2)
        input_specs(self.example)  # what a plan cannot remember is refused before anything is measured
        if self.config.refit:
            _check_several(split_data(self.context).fit)
        self.messages: list[str] = []

    @property
    def task(self) -> RecoveryTask | None:
        """The recovery with its teacher and its data."""
        if self.recovery is None:
            return None
        context = self.context
        return RecoveryTask(
            self.recovery,
            context.graph.model,
            self.training,
            context.judged_on or [],
            context.chosen_on,
            context.progress,
            context.damage.reading,
        )

    @property
    def is_shared(self) -> bool:
        """Whether several processes recover together; what needs no gradient is then done by the first one alone."""
        return self.recovery is not None and are_several()

    def once(self, function: Callable[[], Value]) -> Value:
        """What one process computes, for all of them; timings, too, are undisturbed then."""
        return from_main(function, str(device_of(self.context.model))) if self.is_shared else function()

    def begun(self, callbacks: Callbacks) -> CompressedModel:
        """The network that recovery begins with: of several processes one makes it, and the others rebuild it."""
        if not self.is_shared:
            return self.resumed() or self.changed(callbacks)
        made: list[CompressedModel] = []

        def plan() -> dict[str, Any]:
            made.append(self.resumed() or self.changed(callbacks))
            return plan_state(made[0])

        state = self.once(plan)
        compressed = made[0] if made else rebuild(self.context.model, self.example, state)
        share_tensors_(own_(compressed.model))
        return compressed

    def resumed(self) -> CompressedModel | None:
        """The changed network of an interrupted recovery."""
        if self.recovery is None or self.recovery.path is None:
            return None
        try:
            return load_plan(self.recovery.path, self.context.model, self.example, self._fingerprint(self.recovery))
        except REASONS_TO_SKIP as error:
            self.messages.append(skip_or_raise(self.recovery, error))
            self.recovery = None
            return None

    def changed(self, callbacks: Callbacks) -> CompressedModel:
        """A copy of the network with blocks removed, or removed and replaced by plan."""
        context, goal = self.context, self.context.goal
        if goal.by_plan:
            return self._planned()
        removal = GreedyRemoval(
            context.graph,
            goal,
            context.chosen_on,
            context.judged_on or context.chosen_on,
            context.damage,
            context.task.task,
            callbacks.journal,
            callbacks.progress,
            context.workers,
        )
        choice = removal.choose()
        # It lies in memory of the working copy, which is gone when the run ends.
        cut = remove_blocks(context.model, self.example, choice.removals, context.graph.model).eval()
        compressed = CompressedModel(cut, choice, [*choice.removals], removal_notes(context.graph, choice.removals))
        return self._refitted(compressed) if self.config.refit and choice.removed else compressed

    def _refitted(self, removed: CompressedModel) -> CompressedModel:
        """The network with what stays refitted, unless that does more damage, or leaves the drop that is allowed."""
        context, splits = self.context, split_data(self.context)
        # A metric of the user's may need the labels, which a mix does not have.
        held_back = with_mixup(splits.damage) if context.damage.function is None else splits.damage
        judge = HeldBackDamage(context.graph, held_back, context.damage)
        refinement = Refinement(context.graph, splits.fit, judge, context.progress)
        refined = refinement.best(lambda: shared_copy(removed.model), [], removed.choice.removed)
        choice = (
            self._judged_again(removed.choice, refined.network, "the refit") if refined.is_changed else removed.choice
        )
        notes = [*removed.notes, f"damage on held-back samples: {refined}"]
        if removed.choice.reached and not choice.reached:
            return replace(removed, notes=[*notes, "not refitted: the drop would be larger than allowed"])
        return replace(removed, model=refined.network, choice=choice, notes=notes)

    def _planned(self) -> CompressedModel:
        context, goal = self.context, self.context.goal
        tables = Path(self.config.tables) if self.config.tables is not None else None
        planner = build_planner(context, self.config.latency_from, tables)
        match goal:
            case ParetoPoint():
                planned = planner.at_index(goal.index)
            case MaxDrop():
                planned = planner.fastest_within_drop(goal.points, context.judge(split_data(context).drop))
            case Budget():
                planned = planner.solve_budget(goal, self._race())
            case _:
                raise AssertionError(f"{goal} takes no plan")
        return CompressedModel(planned.model, planned.to_choice(), list(planned.actions), planned.notes)

    def _race(self) -> Race | None:
        """The race that recovery begins with; None where nothing is recovered, or no race is asked for."""
        task, recovery = self.task, self.recovery
        if task is None or recovery is None or recovery.race < 2:
            return None
        return Race(task, {**self._fingerprint(recovery), "budget": str(recovery.total)}, self.context.workers)

    def recovered(self, compressed: CompressedModel) -> CompressedModel:
        """The network after it learned from the original; it is kept before, so that a resumed run starts from it."""
        recovery, task = self.recovery, self.task
        if recovery is None or task is None or not compressed.actions:
            return compressed
        try:
            if recovery.path is not None and leads(str(device_of(self.context.model))):
                save_plan(recovery.path, compressed, self._fingerprint(recovery))
                RaceStore.remove(recovery.path)  # its winner is kept now
            race = compressed.choice.planning.race if compressed.choice.planning is not None else None
            settings = settings_after(recovery.settings or DistillConfig(), race)
            task = replace(task, config=replace(recovery, settings=settings))
            result = task.run(compressed.model, compressed.actions, remaining(recovery.total, race))
            choice = self.once(lambda: self._judged_again(compressed.choice, result.model))
        except REASONS_TO_SKIP as error:
            return replace(compressed, notes=[*compressed.notes, skip_or_raise(recovery, error)])
        self.messages += result.warnings
        notes = [*compressed.notes, result.recovery.summary]
        recovered = since_race(result.recovery, race)
        return replace(compressed, model=result.model, choice=choice, notes=notes, recovery=recovered)

    def folded(self, compressed: CompressedModel) -> CompressedModel:
        """The network folded; where it had to be proved the same, it is proved before: folding rounds."""
        context = self.context
        if isinstance(context.goal, ExactOnly):
            context.progress("certifying", 0, 1)
            _check_proved(certify(context.graph.model, compressed.model, context.chosen_on))
        context.progress("folding", 0, 1)
        result = fold(compressed.model, context.chosen_on[0])
        actions = [*compressed.actions, Fold(folds=result.steps)]
        return replace(compressed, model=result.model, actions=actions, folded=result)

    def plan(self, compressed: CompressedModel) -> Plan:
        """The plan that rebuilds the network."""
        graph = self.context.graph
        return Plan(
            model=self.config.run_info.model,
            inputs=input_specs(self.example),
            network=signature_of(graph.model, graph.chain),
            actions=compressed.actions,
        )

    def _fingerprint(self, recovery: RecoveryConfig) -> dict[str, Any]:
        return plan_fingerprint(self.context, self.config.latency_from, recovery.race, refit=self.config.refit)

    def _judged_again(self, choice: RemovalChoice, model: nn.Module, step: str = "recovery") -> RemovalChoice:
        """The choice with the figures on validation as they are after a step, where there are any."""
        context, goal = self.context, self.context.goal
        if choice.validation is None:
            return choice
        part = split_data(context).drop if goal.by_plan else context.judged_on or context.chosen_on
        comparison = context.judge(part).compare(model)
        if not isinstance(goal, MaxDrop):
            return replace(choice, validation=comparison)
        drop = 100 * metric_drop(comparison)
        return replace(
            choice,
            validation=comparison,
            reached=choice.reached and drop <= goal.points + 1e-9,
            message=f"{choice.message}; after {step} the drop there is {drop:.2f}",
        )


def _check_several(fit: Sequence[Batch]) -> None:
    """Refuse samples to refit on of which none can be held out.

    Raises:
        DataError: says so.
    """
    if sum(batch.size for batch in fit) < 2:
        raise DataError(
            "a single calibration sample is left to refit on, and none can be held out of it",
            "Give more samples (--images), or leave the refit out.",
        )


def _check_proved(certificate: Certificate) -> None:
    """Refuse an exact removal of which the certificate does not say that it is the same function.

    Raises:
        NotReachedError: says what the certificate says.
    """
    if certificate.verdict != "identical":
        raise NotReachedError(
            f"blocks look like strict identities, but the network without them is not proved to be the same: "
            f"the certificate says {certificate.verdict} ({certificate.why_not_identical})",
            "Use --remove or --max-drop to remove blocks without a proof; nothing was written.",
        )


def _as_goal(goal: object) -> Goal:
    if goal is None:
        return DEFAULT_GOAL
    if isinstance(goal, Goal):
        return goal
    raise UsageError(
        f"goal is {goal!r}, expected one of Shoal's goals", "Like shoal.Budget(latency=0.5) or shoal.MaxDrop(1.0)."
    )


def _as_config(config: object) -> CompressConfig:
    if config is None:
        return CompressConfig()
    return expect_type(config, CompressConfig, "config", "Like shoal.CompressConfig(images=256).")


def _options_set(config: CompressConfig, recovery: RecoveryConfig | TrainingBudget | str | int | None) -> set[str]:
    """The names of the options that are not as they are by default, but for those that serve many calls."""
    details = recovery if isinstance(recovery, RecoveryConfig) else None
    budget = recovery.budget if isinstance(recovery, RecoveryConfig) else recovery
    options = {
        "latency_from": config.latency_from is not None,
        "tables": config.tables is not None,
        "refit": config.refit,
        "recover": budget is not None and read_budget(budget) is not None and (details is None or details.required),
        "race": details is not None and details.race not in (0, RACE_PLANS),
        "self_data": details is not None and details.self_data > 0,
    }
    return {name for name, is_set in options.items() if is_set}


def _usable_recovery(
    recovery: RecoveryConfig | None,
    model: nn.Module,
    calibration: object,
    validation: object,
    samples: Sequence[Batch],
    goal: Goal,
) -> tuple[RecoveryConfig | None, list[str]]:
    """The recovery that can be done, and why not, where it was a mere default."""
    if recovery is None:
        return None, []
    if are_several():  # they are there to learn, and what one of them left out the others would wait for
        recovery = replace(recovery, required=True)
    try:
        check_recovery(recovery, model, calibration, validation, samples[0], exact=isinstance(goal, ExactOnly))
        return with_self_data(recovery, model, samples), []
    except REASONS_TO_SKIP as error:
        return None, [skip_or_raise(recovery, error)]


def _differentiable(
    recovery: RecoveryConfig | None, context: CompressContext
) -> tuple[RecoveryConfig | None, list[str]]:
    """The recovery where any output has a gradient, and why not, where it was a mere default."""
    if recovery is None:
        return None, []
    try:
        context.damage.reading.differentiable()
    except REASONS_TO_SKIP as error:
        return None, [skip_or_raise(recovery, error)]
    return recovery, []


def _missing(test: object, validation: object, goal: Goal) -> list[str]:
    messages = []
    if test is None:
        messages.append(
            "no evaluation data was given: quality is measured on the calibration data and flatters the result"
        )
    if validation is None and isinstance(goal, MaxDrop):
        messages.append("no validation data was given: max_drop was judged on the calibration data")
    return messages


def _uncompiled(model: nn.Module) -> list[str]:
    if not is_compiled(model):
        return []
    return ["the network was compiled (torch.compile): both were measured as they are without it; compile the result"]
