"""compress(): measure what each block is worth, choose, remove, prove, measure what came out."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from shoal.batches import Batch, Repeatable, batches, check_one_purpose, device_of, is_read_once
from shoal.blocks import BlockGraph, Chain
from shoal.blocks.prefix_cache import restart_notes
from shoal.errors import DataError, NotReachedError, naming_memory_shortage
from shoal.intake import is_compiled, plain
from shoal.measure import (
    Predictions,
    Reading,
    compare,
    cost,
    latency,
    machine,
    paired_predictions,
    quality,
    within_noise,
)
from shoal.measure.classes import no_better_than_chance
from shoal.measure.output_reading import OutputReading
from shoal.pipeline.context import CompressContext, MeasureConfig, build_context, materialize
from shoal.pipeline.goals import Budget, ExactOnly, Goal, Grain, MaxDrop, ParetoPoint, check_options, parse_goal
from shoal.pipeline.greedy import GreedyRemoval, Journal, NullJournal, Progress, RemovalChoice
from shoal.pipeline.naming import removal_notes
from shoal.pipeline.plan_checkpoint import CutCheckpoint, cut_fingerprint, load_cut, save_cut
from shoal.pipeline.plan_search import plan_choice
from shoal.pipeline.planner import build_planner, split_data
from shoal.pipeline.recovery import (
    REASONS_TO_SKIP,
    Recover,
    check_recover,
    make_probe,
    normalize_recovery,
    run_recovery,
    skip_or_raise,
)
from shoal.pipeline.recovery_probe import RecoveryProbe
from shoal.pipeline.result import Result
from shoal.plan import Fold, Plan, Remove, Replace
from shoal.record import BlockRecord, Certificate, Comparison, Latency, Network, Record, Recovery, metric_drop
from shoal.recover import TrainingBudget, read_budget
from shoal.replace import build_segments
from shoal.scanning import DamageFunction
from shoal.surgery import FoldResult, certify, input_specs, remove_blocks, signature_of
from shoal.surgery import fold as folded_copy


@dataclass(frozen=True)
class RunInfo:
    """Where the run came from, for the record: specs, seed, command. `model` is None for a module made in Python."""

    model: str | None = None
    data: str = "given in Python"
    seed: int = 0
    command: str = "shoal.compress(...)"
    warnings: list[str] = field(default_factory=list)


@naming_memory_shortage()
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
    grain: Grain = "block",
    latency_from: str | Path | None = None,
    tables: str | Path | None = None,
    recover: Recover | TrainingBudget | str | int | None = None,
    fold: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    damage: DamageFunction | None = None,
    output: str | Sequence[str] | None = None,
    settings: MeasureConfig | None = None,
    provenance: RunInfo | None = None,
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
        max_drop: as many as go within this drop of the metric, in points; the goal by default, 1.0. A point is one of
            top-1 where there are labels, else one per cent of samples with another answer; where outputs are no scores
            of classes, one per cent of the variance of the original's output that is lost (100 times the mean squared
            error relative to it). Of several outputs the one that lost most counts.
        blocks: the paths of the blocks to remove.
        exact: only blocks that are proved to do nothing.
        latency: at most this fraction of the original's latency, or an amount like '12ms', measured here.
        macs: at most this fraction of the original's MACs, or an amount like '1.2G'.
        params: likewise for parameters.
        depth: at most so many blocks left; a stand-in counts as one.
        replace: with `max_drop`: blocks may be replaced too.
        pick: the plan with this number, from 1, on the front of the tables (needs `tables` of an earlier run, or makes
            them).
        grain: 'unit' takes attention and MLP of a block one by one, with `remove` (which counts them) or `max_drop`.
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
        damage: what the choice minimises, `damage(original, candidate, batch)`: both are what the networks returned,
            unchanged (the tensor itself where there is one or `output` names one); it returns one number a sample. By
            default KL(original || candidate) of scores of classes, else the squared error relative to the variance of
            the original's output, and the mean over several outputs: `record.outputs` says which and why.
        output: names of the outputs that count (`logits`, `[1]`, `aux`); all that are floating-point by default. The
            certificate looks at all of them in any case.
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
    goal = parse_goal(
        {
            "remove": remove,
            "max_drop": max_drop,
            "blocks": blocks,
            "exact": exact,
            "latency": latency,
            "macs": macs,
            "params": params,
            "depth": depth,
            "pick": pick,
            "include": include,
            "exclude": exclude,
            "replace": replace,
            "grain": grain,
        }
    )
    settings, provenance = settings or MeasureConfig(), provenance or RunInfo()
    check_options(goal, _given(latency_from, tables, recover))
    warnings = [*provenance.warnings, *_missing(eval, validation, goal), *_uncompiled(model)]
    model = plain(model)
    check_one_purpose(calibration=calibration, validation=validation, evaluation=eval)
    test = _First(eval) if eval is not None else None
    chosen_on, judged_on = materialize(calibration, validation, settings, device_of(model))
    winning, said = _winning(
        normalize_recovery(recover), model, calibration, validation, chosen_on[0], exact=isinstance(goal, ExactOnly)
    )
    told = build_context(model, chosen_on, judged_on, goal, settings, damage, progress, output)
    anatomy = told.anatomy
    change, winning, more = _kept(told, winning, latency_from)
    warnings += [*said, *more]
    if change is None and goal.by_plan:
        again = chosen_on if is_read_once(calibration) else calibration
        trial = make_probe(winning, anatomy.model, again, judged_on or [], chosen_on, progress, told.damage.reading)
        change = _planned(told, latency_from, Path(tables) if tables is not None else None, trial)
    elif change is None:
        chooser = GreedyRemoval(
            anatomy, goal, chosen_on, judged_on or chosen_on, told.damage, journal or NullJournal(), progress
        )
        change = _removed(anatomy, model, chosen_on[0].take(2), chooser.choose())
    if winning is not None:
        change = _recovered(told, change, winning, calibration, latency_from)
    if isinstance(goal, ExactOnly) and fold:  # folding rounds: the proof is about the network before
        progress("certifying", 0, 1)
        _check_proved(certify(anatomy.model, change.model, chosen_on))
    if fold:
        progress("folding", 0, 1)
        change = _folded(change, chosen_on[0])
    progress("measuring on test", 0, 1)
    record = _measure(told, change, test or _First(chosen_on))
    if isinstance(goal, ExactOnly) and not fold:
        _check_proved(record.certificate)
    warnings += restart_notes(anatomy)
    known = {
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
    return Result(change.model, plan, record.model_copy(update=known), chosen_on[0].take(2))


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


@dataclass(frozen=True)
class _Change:
    """A changed copy of the network, and what was done to it."""

    model: nn.Module
    choice: RemovalChoice
    actions: list[Remove | Replace | Fold]
    notes: list[str] = field(default_factory=list)
    folded: FoldResult | None = None
    recovery: Recovery | None = None


def _given(
    latency_from: str | Path | None,
    tables: str | Path | None,
    recover: Recover | TrainingBudget | str | int | None,
) -> set[str]:
    """The names of the options that are not as they are by default; settings serve many calls and are no wishes."""
    extra = recover if isinstance(recover, Recover) else None
    budget = recover.budget if isinstance(recover, Recover) else recover
    given = {
        "latency_from": latency_from is not None,
        "tables": tables is not None,
        "recover": budget is not None and read_budget(budget) is not None and (extra is None or extra.asked),
        "try_plans": extra is not None and extra.try_plans > 0,
    }
    return {name for name, is_given in given.items() if is_given}


def _removed(anatomy: BlockGraph, model: nn.Module, example: Batch, choice: RemovalChoice) -> _Change:
    cut = remove_blocks(model, example, choice.removals).eval()
    return _Change(cut, choice, [*choice.removals], removal_notes(anatomy, choice.removals))


def _planned(
    told: CompressContext, latency_from: str | Path | None, tables: Path | None, trial: RecoveryProbe | None
) -> _Change:
    goal, planner = told.goal, build_planner(told, latency_from, tables)
    match goal:
        case ParetoPoint():
            planned = planner.picked(goal.index)
        case MaxDrop():
            planned = planner.fastest_within(goal.points, split_data(told).drop_on)
        case Budget():
            planned = planner.within(goal, trial)
        case _:
            raise AssertionError(f"{goal} takes no plan")
    return _Change(planned.model, plan_choice(planned), list(planned.actions), planned.notes)


def _winning(
    recover: Recover | None, model: nn.Module, calibration: object, validation: object, example: Batch, *, exact: bool
) -> tuple[Recover | None, list[str]]:
    """The recovery that can be done, and why not, where it was a mere default."""
    if recover is None:
        return None, []
    try:
        check_recover(recover, model, calibration, validation, example, exact=exact)
    except REASONS_TO_SKIP as error:
        return None, [skip_or_raise(recover, error)]
    return recover, []


def _kept(
    told: CompressContext, recover: Recover | None, latency_from: str | Path | None
) -> tuple[_Change | None, Recover | None, list[str]]:
    """The cut network of an interrupted recovery, the recovery that can be done, and why not."""
    if recover is None or recover.path is None:
        return None, recover, []
    try:
        claim = cut_fingerprint(told, latency_from, recover.try_plans)
        found = load_cut(recover.path, told.model, told.chosen_on[0].take(2), claim)
    except REASONS_TO_SKIP as error:
        return None, None, [skip_or_raise(recover, error)]
    change = _Change(found.model, found.choice, found.actions, found.notes) if found is not None else None
    return change, recover, []


def _recovered(
    told: CompressContext,
    change: _Change,
    recover: Recover,
    calibration: Iterable[Any],
    latency_from: str | Path | None,
) -> _Change:
    """The cut network after it learned from the original; the cut is kept first, so that a resumed run finds it."""
    if not change.actions:
        return change
    again = told.chosen_on if is_read_once(calibration) else calibration
    teacher, judged_on = told.anatomy.model, told.judged_on or []
    try:
        if recover.path is not None:
            cut = CutCheckpoint(change.model, change.choice, change.actions, change.notes)
            save_cut(recover.path, cut, cut_fingerprint(told, latency_from, recover.try_plans))
        found = run_recovery(
            change.model,
            teacher,
            change.actions,
            recover,
            again,
            judged_on,
            told.chosen_on,
            told.progress,
            told.damage.reading,
        )
        choice = _judged_again(told, change.choice, found.model)
    except REASONS_TO_SKIP as error:
        return replace(change, notes=[*change.notes, skip_or_raise(recover, error)])
    notes = [*change.notes, found.recovery.summary]
    return replace(change, model=found.model, choice=choice, notes=notes, recovery=found.recovery)


def _judged_again(told: CompressContext, choice: RemovalChoice, model: nn.Module) -> RemovalChoice:
    """The choice with the figures on validation as they are after recovery, where there are any."""
    if choice.validation is None:
        return choice
    part = split_data(told).drop_on if told.goal.by_plan else told.judged_on or told.chosen_on
    before, after = paired_predictions([told.anatomy.model, model], part, reading=told.damage.reading)
    seen = compare(before, after, choice.validation.split)
    if not isinstance(told.goal, MaxDrop):
        return replace(choice, validation=seen)
    drop = 100 * metric_drop(seen)
    return replace(
        choice,
        validation=seen,
        reached=choice.reached and drop <= told.goal.points + 1e-9,
        message=f"{choice.message}; after recovery the drop there is {drop:.2f}",
    )


def _folded(change: _Change, example: Batch) -> _Change:
    result = folded_copy(change.model, example)
    actions = [*change.actions, Fold(folds=result.steps)]
    return replace(change, model=result.model, actions=actions, folded=result)


def _plan(anatomy: BlockGraph, change: _Change, example: Batch, provenance: RunInfo) -> Plan:
    return Plan(
        model=provenance.model,
        inputs=input_specs(example),
        network=signature_of(anatomy.model, anatomy.chain),
        actions=change.actions,
    )


def _measure(told: CompressContext, change: _Change, first: "_First") -> Record:
    """The record of original against compressed, but for what only the caller knows."""
    anatomy, settings, reading = told.anatomy, told.settings, told.damage.reading
    cut, choice, folded = change.model, change.choice, change.folded
    original = anatomy.model
    whole = [one.path for one in choice.removals if one.unit is None]
    gone = [*whole, *_constant_blocks(folded)]
    had, has = _depths(anatomy, change.actions, gone)
    before, after = paired_predictions([original, cut], first, reading=reading)
    split = "test"
    comparison = compare(before, after, split)
    batch = first.batch().to(device_of(original))
    times = _latencies(original, cut, batch, settings)
    networks = [
        Network(
            quality=quality(one, split, comparison.output),
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
        removed=whole,
        removed_units=[one.name for one in choice.removals if one.unit is not None],
        replaced=[" + ".join(span) for span in choice.replaced],
        planning=choice.planning,
        recovery=change.recovery,
        folded=folded.folded if folded else [],
        fold_deviation=folded.deviation if folded else None,
        blocks=block_records(anatomy.chain, choice, gone),
        steps=choice.steps,
        machine=machine(device_of(original)),
        outputs=reading.to_record(told.damage.in_words),
        warnings=[
            *_doubts(before),
            *reading.warnings(),
            *_read_anew(reading, before),
            *_remarks(choice, times, comparison),
        ],
        seconds=0.0,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _latencies(original: nn.Module, cut: nn.Module, batch: Batch, settings: MeasureConfig) -> dict[str, list[Latency]]:
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


def _depths(anatomy: BlockGraph, actions: Sequence[Remove | Replace | Fold], gone: Sequence[str]) -> tuple[int, int]:
    """Blocks before and after, or layers of a network without blocks; a stand-in counts as one, an identity as none."""
    units = [block.path for block in anatomy.chain]
    if not any(block.units or block.removable for block in anatomy.chain):
        units = [step.path for step in build_segments(anatomy).segments if step.can_bound_span]
    spans = [one for one in actions if isinstance(one, Replace)]
    away = {*gone, *(path for span in spans for path in span.paths)}
    stand_ins = sum(span.stand_in.depth for span in spans)
    return len(units), sum(path not in away for path in units) + stand_ins


def _constant_blocks(folded: FoldResult | None) -> list[str]:
    """The blocks that went because they add a constant."""
    return [step.path for step in folded.steps if step.kind == "constant"] if folded else []


def block_records(chain: Chain, choice: RemovalChoice | None = None, gone: Sequence[str] = ()) -> list[BlockRecord]:
    """The chain as plain data, with worth and action where a choice was made; `gone` are the blocks no longer there."""
    worths = choice.worths if choice else {}
    return [
        block.record(
            removal_kl=worths[block.path].damage if block.path in worths else None,
            removal_kl_interval=worths[block.path].interval if block.path in worths else None,
            residual_ratio=choice.ratios.get(block.path) if choice else None,
            action="removed" if block.path in gone else (choice.action_of(block.path) if choice else "kept"),
            without=choice.units_gone(block.path) if choice else [],
        )
        for block in chain
    ]


def _remarks(choice: RemovalChoice, times: dict[str, list[Latency]], comparison: Comparison) -> list[str]:
    said = []
    pairs = zip(times["original"], times["compressed"], strict=True)
    noisy = [str(a.batch) for a, b in pairs if within_noise(a, b)]
    if (choice.removed or choice.replaced) and noisy:
        said.append(f"the change in latency is within the noise at batch {', '.join(noisy)}")
    if comparison.n < 400:
        said.append(f"only {comparison.n} samples were evaluated: intervals are wide")
    return said


def _read_anew(reading: Reading, original: Predictions) -> list[str]:
    """That the test data had labels where the calibration data had none, so that it was measured otherwise."""
    had, has = ([one.task for one in outputs] for outputs in (reading.outputs, _outputs_of(original)))
    if had == has:
        return []
    return [
        "the calibration data has no labels, those of the test data are class indices: blocks were chosen by the"
        " squared error of the outputs, and measured as scores of classes"
    ]


def _outputs_of(predictions: Predictions) -> list[OutputReading]:
    return [part.output for part in predictions.outputs if part.output is not None]


def _doubts(original: Predictions) -> list[str]:
    """What makes the original's figures doubtful, of every output that has labels."""
    said = []
    for part in original.outputs:
        top1 = quality(part, "test").top1 if part.are_classes else None
        if top1 is not None:
            said += no_better_than_chance(round(top1 * part.n), part.n, part.classes)
    return said


def _missing(eval_loader: Any, validation: Any, goal: Goal) -> list[str]:
    said = []
    if eval_loader is None:
        said.append("no evaluation data was given: quality is measured on the calibration data and flatters the result")
    if validation is None and isinstance(goal, MaxDrop):
        said.append("no validation data was given: max_drop was judged on the calibration data")
    return said


def _uncompiled(model: nn.Module) -> list[str]:
    if not is_compiled(model):
        return []
    return ["the network was compiled (torch.compile): both were measured as they are without it; compile the result"]


class _First:
    """A loader that can be read again and remembers its first mini-batch, so that the same one can be timed."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = Repeatable(loader, "evaluation data")
        if isinstance(self.loader.loader, list) and not self.loader.loader:
            raise DataError("the evaluation data is empty", "Give at least one mini-batch, or leave it out.")
        self.first: Batch | None = None

    def __iter__(self) -> Iterator[Batch]:
        for batch in batches(self.loader):
            self.first = self.first or batch
            yield batch

    def batch(self) -> Batch:
        return self.first or next(iter(self))
