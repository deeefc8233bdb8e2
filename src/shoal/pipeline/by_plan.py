"""From data and settings to the tables of a network, and from these to a planner."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from shoal.batches import Batch, device_of, digest_of, like_of
from shoal.errors import NotReachedError
from shoal.pipeline.building import Builder
from shoal.pipeline.choose import nothing_removable
from shoal.pipeline.clocks import Measured, clock_from
from shoal.pipeline.mixing import with_blends
from shoal.pipeline.parting import Parts, parted
from shoal.pipeline.planning import Planner
from shoal.pipeline.prices import Prices
from shoal.pipeline.shelf import Shelf
from shoal.pipeline.table_maker import TableMaker
from shoal.pipeline.told import Told
from shoal.recover import Budget, read_budget
from shoal.replace import STUDENTS, line_of
from shoal.scanning import OutputDamage
from shoal.surgery import model_digest


def parts_of(told: Told) -> Parts:
    """Which samples are for what."""
    return parted(told.chosen_on, told.judged_on, told.settings.judge_images, told.settings.judged_share)


def planner_of(told: Told, latency_from: str | Path | None, tables: Path | None) -> Planner:
    """A planner with all its tables, made as far as `tables` does not hold them.

    Raises:
        NotReachedError: nothing can be removed or replaced.
        FolderError: tables of something else.
        SpecError, UsageError: latencies that are none, or of another network.
    """
    anatomy, goal, settings = told.anatomy, told.goal, told.settings
    timed, parts = told.chosen_on[0], parts_of(told)
    measured = Measured(like_of(anatomy.model), timed, channels_last=settings.channels_last)
    clock = clock_from(str(latency_from), timed) if latency_from is not None else measured
    # A metric of the user's may need the labels, which a blend does not have.
    fit_on, judge_on = parts.fit_on, with_blends(parts.judge_on) if told.damage.function is None else parts.judge_on
    allowed = frozenset(block.path for block in anatomy.chain.select(goal.include, goal.exclude))
    line = line_of(anatomy)
    if not line.steps:  # before a folder is made for its tables
        raise NotReachedError(nothing_removable(anatomy), "`shoal trace` gives the reason for each block.")
    shelf = Shelf(tables, _claim(told, fit_on, judge_on))
    maker = TableMaker(
        anatomy,
        fit_on,
        judge_on,
        Prices(anatomy, line, timed, clock, shelf),
        shelf,
        kinds=settings.stand_ins,
        longest=settings.longest,
        allowed=allowed if goal.include or goal.exclude else None,
        damage=told.damage,
        progress=told.progress,
        student_budget=read_budget(settings.student_budget) or Budget(steps=1),
    )
    builder = Builder(anatomy, told.model, maker.make(), fit_on, judge_on, told.damage, told.progress)
    return Planner(builder, clock)


def _claim(told: Told, fit_on: Sequence[Batch], judge_on: Sequence[Batch]) -> dict[str, Any]:
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
        "damage": identity_of(told.damage),
        "include": list(told.goal.include),
        "exclude": list(told.goal.exclude),
    }


def identity_of(function: Callable[..., Any]) -> str:
    """The same in another process for the same function, another for any other: all lambdas have one name."""
    if isinstance(function, OutputDamage):
        return identity_of(function.function) if function.function is not None else function.reading.identity
    code, name = getattr(function, "__code__", None), getattr(function, "__qualname__", "")
    if code is None or "<" not in name:
        return f"{getattr(function, '__module__', '')}.{name}" if name else repr(function)
    inner = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    said = repr((code.co_code, code.co_consts, code.co_names, inner))
    return f"{name} {hashlib.sha256(said.encode()).hexdigest()[:12]}"
