"""compress(): measure what each block is worth, choose, remove, prove, measure what came out."""

import copy
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shoal.batches import Batch, batches, device_of, digest_of
from shoal.blocks import Anatomy, Chain, dissect
from shoal.errors import DataError, NotReachedError, SurgeryError, UsageError
from shoal.measure import compare, cost, latency, machine, paired_predictions, quality, within_noise
from shoal.pipeline.choose import Choice, Chooser, Goal, Journal, NoJournal, Progress, nothing_removable
from shoal.pipeline.clocks import Measured, clock_from
from shoal.pipeline.kept_cut import Cut, keep_cut, kept_cut
from shoal.pipeline.mixing import with_blends
from shoal.pipeline.parting import parted
from shoal.pipeline.planning import Planner, planned_choice
from shoal.pipeline.prices import Prices
from shoal.pipeline.recovering import Recover, as_recover, check_recover, recovered
from shoal.pipeline.result import Result
from shoal.pipeline.shelf import Shelf
from shoal.pipeline.table_maker import DEFAULT_KINDS, LONGEST, TableMaker
from shoal.pipeline.target import Target
from shoal.plan import Fold, Plan, Remove, Replace
from shoal.record import BlockRecord, Comparison, Latency, Network, Record, Recovery
from shoal.recover import Budget
from shoal.replace import line_of
from shoal.scanning import Damage, divergence
from shoal.surgery import FoldResult, certify, input_specs, model_digest, remove_blocks, signature_of
from shoal.surgery import fold as folded_copy


@dataclass(frozen=True)
class Provenance:
    """Where the run came from, for the record: specs, seed, command. `model` is None for a module made in Python."""

    model: str | None = None
    data: str = "given in Python"
    seed: int = 0
    command: str = "shoal.compress(...)"
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Settings:
    """How to measure.

    `images` caps the calibration samples, `validation_images` those of validation, `judge_images` those that damage is
    measured on (validation samples where there are any, else a `judged_share` of calibration's). `stand_ins` are the
    kinds to try, `longest` the steps of the longest span.
    """

    images: int = 512
    judged_share: float = 0.15
    judge_images: int = 128
    validation_images: int = 2048
    stand_ins: tuple[str, ...] = DEFAULT_KINDS
    longest: int = LONGEST
    channels_last: bool = False
    latency_seconds: float = 1.0

    def __post_init__(self) -> None:
        for name in ("images", "judge_images", "longest", "validation_images", "latency_seconds"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}, expected more than 0", "Leave it out.")


def compress(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    eval: Iterable[Any] | None = None,
    validation: Iterable[Any] | None = None,
    remove: int | None = None,
    max_drop: float | None = None,
    blocks: Sequence[str] | None = None,
    exact: bool = False,
    latency: str | float | None = None,
    macs: str | float | None = None,
    params: str | float | None = None,
    depth: int | None = None,
    replace: bool = False,
    pick: int | None = None,
    latency_from: str | Path | None = None,
    tables: str | Path | None = None,
    recover: Recover | Budget | str | int | None = None,
    fold: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    damage: Damage = divergence,
    settings: Settings | None = None,
    provenance: Provenance | None = None,
    journal: Journal | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Result:
    """Make a copy of `model` shallower, prove and measure what was done.

    With `latency`, `macs`, `params` or `depth` blocks are kept, removed, or replaced in spans by stand-ins fitted in
    closed form: the plan of least damage under the budget. Likewise with `max_drop` and `replace`: the fastest plan
    within the drop. Otherwise blocks are removed and nothing else.

    Args:
        model: any network with residual blocks; it is left as it was.
        calibration: mini-batches to choose on (labels are not needed).
        eval: mini-batches for the record, read once; by default the calibration data, which is said.
        validation: mini-batches to judge `max_drop` on; by default the calibration data, which is said.
        remove: how many blocks to remove.
        max_drop: as many as go within this drop of the metric, in points; the goal by default, 1.0.
        blocks: the paths of the blocks to remove.
        exact: only blocks that are proved to do nothing.
        latency: at most this fraction of the original's latency, or an amount like '12ms', measured here.
        macs: at most this fraction of the original's MACs, or an amount like '1.2G'.
        params: likewise for parameters.
        depth: at most so many blocks left; a stand-in counts as one.
        replace: with `max_drop`: blocks may be replaced too.
        pick: the plan with this number, from 1, on the front of the tables (needs `tables` of an earlier run, or makes
            them).
        latency_from: latencies of another device: a table by `shoal latency`, or 'FILE.py:FUNCTION', which runs that
            file; by default they are measured here.
        tables: a folder for the tables of a plan. What is there already, for the same network, data and settings, is
            not measured again, so that another goal takes seconds.
        recover: afterwards learn from the original, without labels, for so long (`10m`, `90s`) or so many steps (2000);
            a `Recover` says more. Needs `validation`.
        fold: afterwards fold batch norms, constants and chains of linear maps: exact algebra in eval mode, the same
            outputs up to rounding, so the certificate is *equal* at best. Not for a network that is to be trained on.
        include: patterns of blocks to consider (all by default).
        exclude: patterns of blocks to keep.
        damage: what the greedy choice minimises, per sample; by default KL(original || candidate).
        settings: how to measure.
        provenance: where model and data came from, for the record.
        journal: keeps finished measurements, so that a later call goes on from them.
        progress: called with (stage, done, total).

    Returns:
        The new network, its plan and its record; `result.record.reached` tells whether the goal was.

    Raises:
        UsageError: goals that do not go together.
        NotReachedError: nothing could be removed at all.
        UnknownBlockError, SurgeryError: a block or pattern that does not fit.
        DataError, NonFiniteError, ModelRaisedError: data, weights or model at fault.
    """
    started = time.perf_counter()
    goal = _goal(remove, max_drop, blocks, exact, include, exclude, Target(latency, macs, params, depth), replace, pick)
    settings, provenance = settings or Settings(), provenance or Provenance()
    warnings = [*provenance.warnings, *_missing(eval, validation, goal)]
    device = device_of(model)
    chosen_on = _gathered(calibration, settings.images, device, "calibration")
    judged_on = (
        _gathered(validation, settings.validation_images, device, "validation") if validation is not None else None
    )
    winning = as_recover(recover)
    if winning is not None:
        check_recover(winning, validation, chosen_on[0], exact=goal.exact)
    progress("tracing", 0, 1)
    anatomy = dissect(_copied(model).eval(), chosen_on[0].take(2))
    told = _Told(anatomy, model, goal, chosen_on, judged_on, settings, damage, progress)
    change = _kept(told, winning)
    if change is None and goal.by_plan:
        change = _planned(told, latency_from, Path(tables) if tables is not None else None)
    elif change is None:
        chooser = Chooser(anatomy, goal, chosen_on, judged_on or chosen_on, damage, journal or NoJournal(), progress)
        change = _removed(model, chosen_on[0].take(2), chooser.choose())
    if winning is not None:
        change = _recovered(told, change, winning, calibration)
    if fold:
        progress("folding", 0, 1)
        change = _folded(change, chosen_on[0])
    progress("measuring on test", 0, 1)
    record = _measure(anatomy, change, chosen_on if eval is None else eval, settings)
    said = {
        "command": provenance.command,
        "model": provenance.model or type(model).__name__,
        "data": provenance.data,
        "seed": provenance.seed,
        "goal": goal.to_dict(),
        "notes": change.notes,
        "warnings": [*warnings, *record.warnings],
        "seconds": time.perf_counter() - started,
    }
    plan = _plan(anatomy, change, chosen_on[0].take(2), provenance)
    return Result(change.model, plan, record.model_copy(update=said), chosen_on[0].take(2))


@dataclass(frozen=True)
class _Change:
    """A changed copy of the network, and what was done to it."""

    model: nn.Module
    choice: Choice
    actions: list[Remove | Replace | Fold]
    notes: list[str] = field(default_factory=list)
    folded: FoldResult | None = None
    recovery: Recovery | None = None


def _goal(
    remove: int | None,
    max_drop: float | None,
    blocks: Sequence[str] | None,
    exact: bool,
    include: Sequence[str],
    exclude: Sequence[str],
    target: Target,
    replace_: bool,
    pick: int | None,
) -> Goal:
    """What is asked; one point of the metric where nothing is."""
    nothing = remove is None and max_drop is None and blocks is None and pick is None
    if nothing and not exact and not target.to_dict():
        max_drop = 1.0
    names = tuple(blocks) if blocks is not None else None
    return Goal(remove, max_drop, names, exact, tuple(include), tuple(exclude), target, replace_, pick)


def _removed(model: nn.Module, example: Batch, choice: Choice) -> _Change:
    cut = remove_blocks(model, example, choice.removed).eval()
    return _Change(cut, choice, [Remove(path=path) for path in choice.removed])


@dataclass(frozen=True)
class _Told:
    """What a plan is made from."""

    anatomy: Anatomy
    model: nn.Module
    goal: Goal
    chosen_on: list[Batch]
    judged_on: list[Batch] | None
    settings: Settings
    damage: Damage
    progress: Progress


def _planned(told: _Told, latency_from: str | Path | None, tables: Path | None) -> _Change:
    anatomy, goal, settings = told.anatomy, told.goal, told.settings
    timed = told.chosen_on[0]
    like = next(anatomy.model.parameters())
    measured = Measured(like, timed, channels_last=settings.channels_last)
    clock = clock_from(str(latency_from), timed) if latency_from is not None else measured
    parts = parted(told.chosen_on, told.judged_on, settings.judge_images, settings.judged_share)
    # A metric of the user's may need the labels, which a blend does not have.
    fit_on, judge_on = parts.fit_on, with_blends(parts.judge_on) if told.damage is divergence else parts.judge_on
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
    )
    planner = Planner(anatomy, told.model, maker.make(), fit_on, judge_on, clock, told.damage, told.progress)
    if goal.pick is not None:
        planned = planner.picked(goal.pick)
    elif goal.max_drop is not None:
        planned = planner.fastest_within(goal.max_drop, parts.drop_on)
    else:
        planned = planner.within(goal.target)
    return _Change(planned.model, planned_choice(planned), list(planned.actions), planned.notes)


def _claim(told: _Told, fit_on: Sequence[Batch], judge_on: Sequence[Batch]) -> dict[str, Any]:
    """All that the tables depend on."""
    settings, timed = told.settings, told.chosen_on[0]
    return {
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
        "damage": getattr(told.damage, "__name__", "given"),
        "include": list(told.goal.include),
        "exclude": list(told.goal.exclude),
    }


def _kept(told: _Told, recover: Recover | None) -> _Change | None:
    """The cut network of an interrupted recovery."""
    if recover is None or recover.path is None:
        return None
    found = kept_cut(recover.path, told.model, told.chosen_on[0].take(2), _cut_claim(told))
    return _Change(found.model, found.choice, found.actions, found.notes) if found is not None else None


def _recovered(told: _Told, change: _Change, recover: Recover, calibration: Iterable[Any]) -> _Change:
    """The cut network after it learned from the original; the cut is kept first, so that a resumed run finds it."""
    if recover.path is not None:
        cut = Cut(change.model, change.choice, change.actions, change.notes)
        keep_cut(recover.path, cut, _cut_claim(told))
    again = told.chosen_on if isinstance(calibration, Iterator) else calibration
    teacher, judged_on = told.anatomy.model, told.judged_on or []
    found = recovered(change.model, teacher, change.actions, recover, again, judged_on, told.chosen_on, told.progress)
    notes = [*change.notes, found.recovery.sentence]
    return replace(change, model=found.model, notes=notes, recovery=found.recovery)


def _cut_claim(told: _Told) -> dict[str, Any]:
    """All that the choice depends on, but for the clock."""
    known = {
        "network": model_digest(told.model)[:16],
        "goal": told.goal.to_dict(),
        "chosen_on": digest_of(told.chosen_on),
    }
    return {**known, "judged_on": digest_of(told.judged_on or []), "device": str(device_of(told.model))}


def _folded(change: _Change, example: Batch) -> _Change:
    result = folded_copy(change.model, example)
    actions = [*change.actions, Fold(folds=result.steps)]
    return replace(change, model=result.model, actions=actions, folded=result)


def _plan(anatomy: Anatomy, change: _Change, example: Batch, provenance: Provenance) -> Plan:
    return Plan(
        model=provenance.model,
        inputs=input_specs(example),
        network=signature_of(anatomy.model, anatomy.chain),
        actions=change.actions,
    )


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise SurgeryError(
            f"{type(model).__name__} cannot be copied: {error}",
            "Shoal works on a copy: take out of the network what copy.deepcopy refuses.",
        ) from error


def _measure(anatomy: Anatomy, change: _Change, loader: Iterable[Any], settings: Settings) -> Record:
    """The record of original against compressed, but for what only the caller knows."""
    cut, choice, folded = change.model, change.choice, change.folded
    original = anatomy.model
    gone = [*choice.removed, *_constant_blocks(folded)]
    had, has = _depths(anatomy, change.actions, gone)
    first = _First(loader)
    before, after = paired_predictions([original, cut], first)
    split = "test"
    batch = first.batch().to(device_of(original))
    times = _latencies(original, cut, batch, settings)
    networks = [
        Network(
            quality=quality(one, split),
            latency=times[name],
            cost=cost(network, batch.take(1)),
            blocks=blocks,
        )
        for name, network, one, blocks in (
            ("original", original, before, had),
            ("compressed", cut, after, has),
        )
    ]
    certificate = certify(original, cut, first)
    comparison = compare(before, after, split)
    return Record(
        command="",
        model="",
        data="",
        seed=0,
        goal={},
        reached=choice.reached,
        message=choice.message + (f", {len(folded.folded)} layers folded" if folded else ""),
        original=networks[0],
        compressed=networks[1],
        comparison=comparison,
        validation=choice.validation,
        certificate=certificate,
        removed=choice.removed,
        replaced=[" + ".join(span) for span in choice.replaced],
        planning=choice.planning,
        recovery=change.recovery,
        folded=folded.folded if folded else [],
        fold_deviation=folded.deviation if folded else None,
        blocks=block_records(anatomy.chain, choice, gone),
        steps=choice.steps,
        machine=machine(device_of(original)),
        warnings=_remarks(choice, times, comparison),
        seconds=0.0,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _latencies(original: nn.Module, cut: nn.Module, batch: Batch, settings: Settings) -> dict[str, list[Latency]]:
    found: dict[str, list[Latency]] = {"original": [], "compressed": []}
    for part in [batch.take(1), batch] if batch.size > 1 else [batch]:
        timed = latency(
            {"original": original, "compressed": cut},
            part,
            channels_last=settings.channels_last,
            min_seconds=settings.latency_seconds,
        )
        for name, one in timed.items():
            found[name].append(one)
    return found


def _depths(anatomy: Anatomy, actions: Sequence[Remove | Replace | Fold], gone: Sequence[str]) -> tuple[int, int]:
    """Blocks before and after, or layers of a network without blocks; a stand-in counts as one, an identity as none."""
    units = [block.path for block in anatomy.chain]
    if not any(block.units for block in anatomy.chain):
        units = [step.path for step in line_of(anatomy).steps if step.ends]
    spans = [one for one in actions if isinstance(one, Replace)]
    away = {*gone, *(path for span in spans for path in span.paths)}
    stand_ins = sum(span.stand_in.kind != "identity" for span in spans)
    return len(units), sum(path not in away for path in units) + stand_ins


def _constant_blocks(folded: FoldResult | None) -> list[str]:
    """The blocks that went because they add a constant."""
    return [step.path for step in folded.steps if step.kind == "constant"] if folded else []


def block_records(chain: Chain, choice: Choice | None = None, gone: Sequence[str] = ()) -> list[BlockRecord]:
    """The chain as plain data, with worth and fate where a choice was made; `gone` are the blocks no longer there."""
    worths = choice.worths if choice else {}
    return [
        BlockRecord(
            path=block.path,
            stage=block.stage,
            kind=block.kind,
            shortcut=block.shortcut or "none",
            activation=block.activation,
            in_shape=list(block.in_shape),
            out_shape=list(block.out_shape),
            params=block.params,
            removable=block.removable,
            reason=block.reason,
            worth_kl=worths[block.path].damage if block.path in worths else None,
            worth_kl_interval=worths[block.path].interval if block.path in worths else None,
            residual_ratio=choice.ratios.get(block.path) if choice else None,
            fate="removed" if block.path in gone else (choice.fate_of(block.path) if choice else "kept"),
        )
        for block in chain
    ]


def _remarks(choice: Choice, times: dict[str, list[Latency]], comparison: Comparison) -> list[str]:
    said = []
    pairs = zip(times["original"], times["compressed"], strict=True)
    noisy = [str(a.batch) for a, b in pairs if within_noise(a, b)]
    if (choice.removed or choice.replaced) and noisy:
        said.append(f"the change in latency is within the noise at batch {', '.join(noisy)}")
    if comparison.n < 400:
        said.append(f"only {comparison.n} samples were evaluated: intervals are wide")
    return said


def _missing(eval_loader: Any, validation: Any, goal: Goal) -> list[str]:
    said = []
    if eval_loader is None:
        said.append("no evaluation data was given: quality is measured on the calibration data and flatters the result")
    if validation is None and goal.max_drop is not None:
        said.append("no validation data was given: max_drop was judged on the calibration data")
    return said


def _gathered(loader: Iterable[Any], limit: int, device: Any, name: str) -> list[Batch]:
    """Up to `limit` samples, kept, so that every candidate sees the very same ones."""
    found, count = [], 0
    for batch in batches(loader, device):
        found.append(batch.take(limit - count) if count + batch.size > limit else batch)
        count += found[-1].size
        if count >= limit:
            break
    if not found:
        raise DataError(f"the {name} data is empty", "Give at least one mini-batch.")
    return found


class _First:
    """A loader that can be read again and remembers its first mini-batch, so that the same one can be timed."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = list(loader) if isinstance(loader, Iterator) else loader
        self.first: Batch | None = None

    def __iter__(self) -> Iterator[Batch]:
        for batch in batches(self.loader):
            self.first = self.first or batch
            yield batch

    def batch(self) -> Batch:
        return self.first or next(iter(self))
