"""From data and settings to the tables of a network, and from these to a search for plans, or to a mere prediction."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shoal.batches import Batch, device_of, first_samples, like_of
from shoal.blocks import BlockGraph
from shoal.errors import NotReachedError, UsageError, naming_memory_shortage
from shoal.fingerprint import digest_of, legacy_digest_of
from shoal.pipeline.cache import MeasurementCache
from shoal.pipeline.candidate_refit import CandidateRefitConfig
from shoal.pipeline.candidate_table import CandidateBuilder
from shoal.pipeline.config import CompressConfig
from shoal.pipeline.context import CompressContext, build_context, materialize
from shoal.pipeline.costs import CostModel
from shoal.pipeline.data_splits import DataSplits, split_samples_for_plan, with_mixup
from shoal.pipeline.effort import Effort
from shoal.pipeline.goals import Budget, Goal, ParetoPoint, by_units, check_batch_sizes
from shoal.pipeline.greedy import nothing_removable
from shoal.pipeline.latency_backends import (
    EstimatedLatency,
    LatencyBackend,
    LatencyFunction,
    MeasuredLatency,
    SeveralBatchSizes,
    open_backend,
)
from shoal.pipeline.plan_builder import PlanBuilder
from shoal.pipeline.plan_search import PlanSearch
from shoal.progress import Callbacks, ProgressCallback, as_callbacks
from shoal.record import FrontPoint
from shoal.recover import TrainingBudget, read_budget
from shoal.replace import FOLDED, LINEAR_ATTENTION, STUDENTS, build_segments
from shoal.scanning import OutputDamage
from shoal.surgery import model_digest


def split_data(context: CompressContext) -> DataSplits:
    """Which samples are for what."""
    settings = context.settings
    return split_samples_for_plan(context.chosen_on, context.judged_on, settings.judge_images, settings.judged_share)


def build_planner(context: CompressContext, latency_from: str | Path | None, tables: Path | None) -> PlanSearch:
    """A plan search with all its tables, made as far as the folder `tables` does not hold them.

    Raises:
        NotReachedError: nothing can be removed or replaced.
        FolderError: tables of something else.
        SpecError, UsageError: an invalid latency table, or that of another network.
    """
    graph, goal, settings = context.graph, context.goal, context.settings
    timed, splits = timed_batches(context), split_data(context)
    backend = _open_backend(context, latency_from, timed)
    # A metric of the user's may need the labels, which a mix does not have.
    judge = with_mixup(splits.damage) if context.damage.function is None else splits.damage
    allowed, units = _selected(graph, goal)
    segments = build_segments(graph)
    if not segments.segments:  # before a folder is made for its tables
        if graph.chain.removable:
            raise NotReachedError(
                "a plan walks along one stream, and the blocks of this network take or return several",
                "Remove blocks without a plan: --remove, or --max-drop without --replace.",
            )
        raise NotReachedError(nothing_removable(graph), "`shoal trace` gives the reason for each block.")
    effort = Effort.for_network(graph, segments, context.damage.reading)
    legacy = _legacy_fingerprint(context, splits.fit, judge)
    cache = MeasurementCache(tables, _cache_fingerprint(context, splits.fit, judge), legacy)
    candidates = CandidateBuilder(
        graph,
        splits.fit,
        list(first_samples(judge, effort.table_samples if settings.screening else None)),
        CostModel(graph, segments, timed[0], backend, cache, context.workers),
        cache,
        kinds=settings.stand_ins,
        longest=settings.longest,
        allowed=allowed if goal.include or goal.exclude else None,
        # Tables of version 1 hold damages without a refit; they are solved as they are, and nothing is measured again.
        refit=CandidateRefitConfig() if settings.table_refit and cache.version != 1 else None,
        units=units,
        depth_only=not _bounded(goal),
        damage=context.damage,
        progress=context.progress,
        student_budget=read_budget(settings.student_budget) or TrainingBudget(steps=1),
        workers=context.workers,
        screening=settings.screening,
    )
    judged = list(first_samples(judge, effort.plan_samples))
    builder = PlanBuilder(graph, candidates.build(), splits.fit, judged, context.damage, context.progress, effort)
    return PlanSearch(builder, backend)


def _selected(graph: BlockGraph, goal: Goal) -> tuple[frozenset[str], dict[str, tuple[int, ...]] | None]:
    """The blocks that the patterns leave whole, and by block the units that may go alone; None: none may."""
    if not by_units(goal):
        return frozenset(block.path for block in graph.chain.select(goal.include, goal.exclude)), None
    units = graph.chain.select_units(goal.include, goal.exclude)
    whole = (path for path, numbers in units.items() if len(numbers) == len(graph.chain[path].removable_units))
    return frozenset(path for path in whole if graph.chain[path].removable), units


def timed_batches(context: CompressContext) -> list[Batch]:
    """The mini-batches that networks are timed on: those asked for, the largest first, else the first of calibration.

    Raises:
        UsageError: a budget in milliseconds, which means nothing at several batch sizes.
    """
    first, sizes = context.chosen_on[0], context.settings.latency_batch_sizes
    check_batch_sizes(context.goal, sizes)
    return [first.resized(size) for size in sizes] or [first]


def _bounded(goal: Goal) -> frozenset[str]:
    """The quantities that a plan is chosen by; the front is by latency."""
    return goal.quantities if isinstance(goal, Budget) else frozenset({"latency"})


def _open_backend(context: CompressContext, latency_from: str | Path | None, timed: Sequence[Batch]) -> LatencyBackend:
    """Latencies at each of these mini-batches.

    Raises:
        UsageError: a table that was made at another batch size.
    """
    settings = context.settings
    parts: list[LatencyBackend]
    like = like_of(context.graph.model)
    if latency_from is None and "latency" not in _bounded(context.goal):
        parts = [EstimatedLatency(like, timed[0], channels_last=settings.channels_last)]
    elif latency_from is None:
        parts = [MeasuredLatency(like, batch, channels_last=settings.channels_last) for batch in timed]
    else:
        backend = open_backend(str(latency_from), timed[0])
        if isinstance(backend, LatencyFunction):
            parts = [backend.at(batch) for batch in timed]
        else:
            parts = [backend]
            sizes = settings.latency_batch_sizes
            if sizes and sizes != (backend.batch_size,):
                raise UsageError(
                    f"the latency table {Path(latency_from).name} holds batch {backend.batch_size}, asked for are the"
                    f" batch sizes {', '.join(map(str, sizes))}",
                    "Give that batch size, or a function, which is asked at each; a table holds one batch size.",
                )
    return parts[0] if len(parts) == 1 else SeveralBatchSizes(parts)


@dataclass(frozen=True)
class PlanPrediction:
    """What the tables promise; nothing of it was measured on a network that was built.

    `plan` is None for a goal that only measuring can decide (a drop). Times are of `source`.
    """

    plan: FrontPoint | None
    front: list[FrontPoint]
    original_ms: float
    source: str


@naming_memory_shortage()
def predict_plan(
    model: nn.Module,
    calibration: Iterable[Any],
    goal: Goal,
    *,
    validation: Iterable[Any] | None = None,
    config: CompressConfig | None = None,
    callbacks: Callbacks | ProgressCallback | None = None,
) -> PlanPrediction:
    """The plan that compress() would build first, and the whole front, by the tables.

    Takes seconds where the folder `config.tables` holds them already; makes them first where it does not. Arguments are
    those of compress().

    Raises:
        NotReachedError: no plan meets the goal, by the tables.
        UsageError: no such point on the front.
        And what making the tables may raise, see compress().
    """
    config, callbacks = config or CompressConfig(), as_callbacks(callbacks)
    samples, judged = materialize(calibration, validation, config.measure, device_of(model), by_plan=goal.by_plan)
    context = build_context(
        model, samples, judged, goal, config.measure, config.damage, callbacks.progress, config.outputs
    )
    search = build_planner(context, config.latency_from, Path(config.tables) if config.tables is not None else None)
    plan = search.predict(goal) if isinstance(goal, Budget | ParetoPoint) else None
    return PlanPrediction(plan, search.pareto_points(), search.tables.whole.latency_ms, search.backend.source)


def _cache_fingerprint(context: CompressContext, fit: Sequence[Batch], judge: Sequence[Batch]) -> dict[str, Any]:
    """All that the tables depend on."""
    settings, timed = context.settings, timed_batches(context)[0]
    students = [kind for kind in settings.stand_ins if kind in STUDENTS]
    training = {"student_budget": str(read_budget(settings.student_budget))} if students else {}
    return {
        **training,
        "tables_version": 2,
        "network": model_digest(context.graph.model)[:16],
        "fit_on": digest_of(fit),
        "judge_on": digest_of(judge),
        "timed": [list(tensor.shape) for tensor in timed.tensors],
        # Folds and linear attentions are found by their names in tables that were made without them.
        "stand_ins": [kind for kind in settings.stand_ins if kind not in (FOLDED, LINEAR_ATTENTION)],
        "longest": settings.longest,
        "channels_last": settings.channels_last,
        "device": str(device_of(context.graph.model)),
        "damage": function_id(context.damage),
        "include": list(context.goal.include),
        "exclude": list(context.goal.exclude),
        **({"grain": "unit"} if by_units(context.goal) else {}),
        **({} if settings.screening else {"screening": False}),
    }


def _legacy_fingerprint(context: CompressContext, fit: Sequence[Batch], judge: Sequence[Batch]) -> dict[str, Any]:
    """The values of `_cache_fingerprint` that version 0.1.0 wrote otherwise, where its tables mean the same.

    Its digests leave out the labels, which the built-in damage does not read; it compared scores of classes alone. It
    wrote the number of threads here, on which nothing depends but latencies.
    """
    always = {"tables_version": 1, "threads": torch.get_num_threads()}
    if not context.damage.is_class_divergence:
        return always
    return {
        **always,
        "fit_on": legacy_digest_of(fit),
        "judge_on": legacy_digest_of(judge),
        "damage": "shoal.scanning.sweep.divergence",
    }


def function_id(function: Callable[..., Any]) -> str:
    """The same in another process for the same function, another for any other: all lambdas have one name."""
    if isinstance(function, OutputDamage):
        return function_id(function.function) if function.function is not None else function.reading.identity
    code, name = getattr(function, "__code__", None), getattr(function, "__qualname__", "")
    if code is None or "<" not in name:
        return f"{getattr(function, '__module__', '')}.{name}" if name else repr(function)
    inner = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    text = repr((code.co_code, code.co_consts, code.co_names, inner))
    return f"{name} {hashlib.sha256(text.encode()).hexdigest()[:12]}"
