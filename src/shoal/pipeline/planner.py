"""From data and settings to the tables of a network, and from these to a planner."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from shoal.batches import Batch, device_of, like_of
from shoal.errors import NotReachedError
from shoal.fingerprint import digest_of, legacy_digest_of
from shoal.pipeline.cache import MeasurementCache
from shoal.pipeline.candidate_table import CandidateBuilder
from shoal.pipeline.context import CompressContext
from shoal.pipeline.costs import CostModel
from shoal.pipeline.data_splits import DataSplits, split_samples_for_plan
from shoal.pipeline.greedy import nothing_removable
from shoal.pipeline.latency_backends import MeasuredLatency, open_backend
from shoal.pipeline.mixed_calibration import with_mixup
from shoal.pipeline.plan_builder import PlanBuilder
from shoal.pipeline.plan_search import PlanSearch
from shoal.recover import TrainingBudget, read_budget
from shoal.replace import STUDENTS, build_segments
from shoal.scanning import OutputDamage
from shoal.surgery import model_digest


def split_data(told: CompressContext) -> DataSplits:
    """Which samples are for what."""
    return split_samples_for_plan(
        told.chosen_on, told.judged_on, told.settings.judge_images, told.settings.judged_share
    )


def build_planner(told: CompressContext, latency_from: str | Path | None, tables: Path | None) -> PlanSearch:
    """A planner with all its tables, made as far as `tables` does not hold them.

    Raises:
        NotReachedError: nothing can be removed or replaced.
        FolderError: tables of something else.
        SpecError, UsageError: latencies that are none, or of another network.
    """
    anatomy, goal, settings = told.anatomy, told.goal, told.settings
    timed, parts = told.chosen_on[0], split_data(told)
    measured = MeasuredLatency(like_of(anatomy.model), timed, channels_last=settings.channels_last)
    clock = open_backend(str(latency_from), timed) if latency_from is not None else measured
    # A metric of the user's may need the labels, which a blend does not have.
    fit_on, judge_on = parts.fit_on, with_mixup(parts.judge_on) if told.damage.function is None else parts.judge_on
    allowed = frozenset(block.path for block in anatomy.chain.select(goal.include, goal.exclude))
    line = build_segments(anatomy)
    if not line.segments:  # before a folder is made for its tables
        raise NotReachedError(nothing_removable(anatomy), "`shoal trace` gives the reason for each block.")
    shelf = MeasurementCache(tables, _claim(told, fit_on, judge_on), _legacy_claim(told, fit_on, judge_on))
    maker = CandidateBuilder(
        anatomy,
        fit_on,
        judge_on,
        CostModel(anatomy, line, timed, clock, shelf),
        shelf,
        kinds=settings.stand_ins,
        longest=settings.longest,
        allowed=allowed if goal.include or goal.exclude else None,
        damage=told.damage,
        progress=told.progress,
        student_budget=read_budget(settings.student_budget) or TrainingBudget(steps=1),
    )
    builder = PlanBuilder(anatomy, told.model, maker.make(), fit_on, judge_on, told.damage, told.progress)
    return PlanSearch(builder, clock)


def _claim(told: CompressContext, fit_on: Sequence[Batch], judge_on: Sequence[Batch]) -> dict[str, Any]:
    """All that the tables depend on."""
    settings, timed = told.settings, told.chosen_on[0]
    students = [kind for kind in settings.stand_ins if kind in STUDENTS]
    taught = {"student_budget": str(read_budget(settings.student_budget))} if students else {}
    return {
        **taught,
        "tables_version": 1,
        "network": model_digest(told.anatomy.model)[:16],
        "fit_on": digest_of(fit_on),
        "judge_on": digest_of(judge_on),
        "timed": [list(one.shape) for one in timed.tensors],
        "stand_ins": list(settings.stand_ins),
        "longest": settings.longest,
        "channels_last": settings.channels_last,
        "device": str(device_of(told.anatomy.model)),
        "threads": torch.get_num_threads(),
        "damage": function_id(told.damage),
        "include": list(told.goal.include),
        "exclude": list(told.goal.exclude),
    }


def _legacy_claim(told: CompressContext, fit_on: Sequence[Batch], judge_on: Sequence[Batch]) -> dict[str, Any]:
    """The values of `_claim` that version 0.1.0 wrote otherwise, where its tables mean the same.

    Its digests leave out the labels, which the built-in damage does not read; it compared scores of classes alone.
    """
    if not told.damage.is_class_divergence:
        return {}
    return {
        "fit_on": legacy_digest_of(fit_on),
        "judge_on": legacy_digest_of(judge_on),
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
    said = repr((code.co_code, code.co_consts, code.co_names, inner))
    return f"{name} {hashlib.sha256(said.encode()).hexdigest()[:12]}"
