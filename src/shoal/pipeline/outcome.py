"""The record of original against compressed: quality, latency, cost, certificate, and what to doubt about them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from torch import nn

from shoal.batches import Batch, Repeatable, batches, device_of
from shoal.blocks import BlockGraph, Chain
from shoal.errors import DataError, count_of
from shoal.measure import (
    Predictions,
    Reading,
    compare,
    cost,
    latency_beside,
    machine,
    paired_predictions,
    quality,
    within_noise,
)
from shoal.measure.classes import no_better_than_chance
from shoal.measure.output_reading import OutputReading
from shoal.pipeline.config import MeasureConfig
from shoal.pipeline.context import CompressContext
from shoal.pipeline.goals import Budget, Goal, MaxDrop, points_text
from shoal.pipeline.greedy import RemovalChoice
from shoal.pipeline.result import CompressedModel
from shoal.plan import Fold, Remove, Replace
from shoal.record import BlockRecord, Comparison, Latency, MetricComparison, Network, NetworkCost, Record
from shoal.replace import build_segments
from shoal.surgery import FoldResult, certify
from shoal.tasks import compare_metrics, usual_outputs


def measure_outcome(context: CompressContext, compressed: CompressedModel, test: "FirstBatchLoader") -> Record:
    """The record of original against compressed, but for what only the caller knows."""
    graph, reading = context.graph, context.damage.reading
    cut, choice, folded = compressed.model, compressed.choice, compressed.folded
    original = graph.model
    whole = [removal.path for removal in choice.removals if removal.unit is None]
    removed = [*whole, *_constant_blocks(folded)]
    blocks_before, blocks_after = _depths(graph, compressed.actions, removed)
    before, after = paired_predictions([original, cut], test, reading=reading)
    split = "test"
    comparison = compare(before, after, split)
    with usual_outputs(original, cut):
        measured = _measure_usual(context, cut, test)
    comparison = comparison.model_copy(update={"metrics": measured.metrics})
    networks = [
        Network(
            quality=quality(predicted, split, comparison.output),
            latency=measured.times[name],
            cost=measured.costs[name],
            blocks=blocks,
        )
        for name, predicted, blocks in (("original", before, blocks_before), ("compressed", after, blocks_after))
    ]
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
        certificate=certify(original, cut, test),
        removed=whole,
        removed_units=[removal.name for removal in choice.removals if removal.unit is not None],
        replaced=[" + ".join(span) for span in choice.replaced],
        planning=choice.planning,
        recovery=compressed.recovery,
        folded=folded.folded if folded else [],
        fold_deviation=folded.deviation if folded else None,
        blocks=block_records(graph.chain, choice, removed),
        steps=choice.steps,
        machine=machine(device_of(original)),
        outputs=reading.to_record(context.damage.description, context.task.name),
        warnings=[
            *_doubts(before),
            *reading.warnings(),
            *_read_anew(reading, before),
            *_remarks(choice, measured.times, comparison),
            *_within_budget(context.goal, choice),
            *_beyond_goal(context.goal, choice, comparison),
            *measured.notes,
        ],
        seconds=0.0,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


@dataclass(frozen=True)
class _Measured:
    """What is measured of both networks as their users call them."""

    metrics: list[MetricComparison]
    notes: list[str]
    times: dict[str, list[Latency]]
    costs: dict[str, NetworkCost]


def _measure_usual(context: CompressContext, cut: nn.Module, test: "FirstBatchLoader") -> _Measured:
    """The task's metrics, latency and cost, of networks with their usual outputs."""
    original, task = context.graph.model, context.task.task
    batch, notes = test.batch().to(device_of(original)), list[str]()
    return _Measured(
        compare_metrics(task, original, cut, test, notes=notes) if task is not None else [],
        notes,
        _latencies(original, cut, batch, context.settings),
        {name: cost(network, batch.take(1)) for name, network in (("original", original), ("compressed", cut))},
    )


def _latencies(original: nn.Module, cut: nn.Module, batch: Batch, settings: MeasureConfig) -> dict[str, list[Latency]]:
    times: dict[str, list[Latency]] = {"original": [], "compressed": []}
    for size in sorted({1, *(settings.latency_batch_sizes or [batch.size])}):
        timed = latency_beside(
            {"original": original, "compressed": cut},
            batch.resized(size),
            reference="original",
            channels_last=settings.channels_last,
            seconds=settings.latency_seconds,
        )
        for name, measured in timed.items():
            times[name].append(measured)
    return times


def _depths(graph: BlockGraph, actions: Sequence[Remove | Replace | Fold], removed: Sequence[str]) -> tuple[int, int]:
    """Blocks before and after, or layers of a network without blocks; a stand-in counts as one, an identity as none."""
    units = [block.path for block in graph.chain]
    if not any(block.units or block.removable for block in graph.chain):
        units = [step.path for step in build_segments(graph).segments if step.can_bound_span]
    spans = [action for action in actions if isinstance(action, Replace)]
    away = {*removed, *(path for span in spans for path in span.paths)}
    stand_ins = sum(span.stand_in.depth for span in spans)
    return len(units), sum(path not in away for path in units) + stand_ins


def _constant_blocks(folded: FoldResult | None) -> list[str]:
    """The blocks that went because they add a constant."""
    return [step.path for step in folded.steps if step.kind == "constant"] if folded else []


def block_records(chain: Chain, choice: RemovalChoice | None = None, removed: Sequence[str] = ()) -> list[BlockRecord]:
    """The chain as plain data, with damage and action where a choice was made; `removed`: the blocks that are gone."""
    worths = choice.worths if choice else {}
    return [
        block.record(
            removal_kl=worths[block.path].damage if block.path in worths else None,
            removal_kl_interval=worths[block.path].interval if block.path in worths else None,
            residual_ratio=choice.ratios.get(block.path) if choice else None,
            action="removed" if block.path in removed else (choice.action_of(block.path) if choice else "kept"),
            without=choice.units_gone(block.path) if choice else [],
        )
        for block in chain
    ]


def _remarks(choice: RemovalChoice, times: dict[str, list[Latency]], comparison: Comparison) -> list[str]:
    messages = []
    pairs = zip(times["original"], times["compressed"], strict=True)
    noisy = [str(a.batch) for a, b in pairs if within_noise(a, b)]
    if (choice.removed or choice.replaced) and noisy:
        messages.append(f"the change in latency is within the noise at batch {', '.join(noisy)}")
    if comparison.n < 400:
        verb = "was" if comparison.n == 1 else "were"
        messages.append(f"only {count_of(comparison.n, 'sample')} {verb} evaluated: intervals are wide")
    return messages


def _within_budget(goal: Goal, choice: RemovalChoice) -> list[str]:
    """That a budget asks for nothing, so that nobody looks for what has changed."""
    if not isinstance(goal, Budget) or not choice.reached or choice.removals or choice.replaced:
        return []
    bounds = ", ".join(f"{name} {bound}" for name, bound in goal.bounds.items())
    return [f"the original is within the budget ({bounds}) already: nothing had to change"]


def _beyond_goal(goal: Goal, choice: RemovalChoice, test: Comparison) -> list[str]:
    """That surely more is lost on test than the goal allows, which was judged on validation."""
    if not isinstance(goal, MaxDrop) or choice.validation is None or test.top1_drop_interval is None:
        return []
    if 100 * test.top1_drop_interval[0] <= goal.points:
        return []
    return [
        f"{_lost(test)} on test, where at most {points_text(goal.points)} was asked for; {_lost(choice.validation)} on"
        " validation, which decides: it is not like test, as images that are shifted or mirrored for a network that was"
        " trained without"
    ]


def _lost(comparison: Comparison) -> str:
    if comparison.top1_drop is None or comparison.top1_drop_interval is None:
        return "nothing that can be told"
    low, high = (100 * end for end in comparison.top1_drop_interval)
    return f"{100 * comparison.top1_drop:.2g} points of top-1 lost ({low:.2g} to {high:.2g})"


def _read_anew(reading: Reading, original: Predictions) -> list[str]:
    """That the test data had labels where the calibration data had none, so that it was measured otherwise."""
    chosen, measured = ([output.task for output in outputs] for outputs in (reading.outputs, _outputs_of(original)))
    if chosen == measured:
        return []
    return [
        "the calibration data has no labels, those of the test data are class indices: blocks were chosen by the"
        " squared error of the outputs, and measured as scores of classes"
    ]


def _outputs_of(predictions: Predictions) -> list[OutputReading]:
    return [part.output for part in predictions.outputs if part.output is not None]


def _doubts(original: Predictions) -> list[str]:
    """What makes the original's figures doubtful, of every output that has labels."""
    messages = []
    for part in original.outputs:
        top1 = quality(part, "test").top1 if part.are_classes else None
        if top1 is not None:
            messages += no_better_than_chance(round(top1 * part.n), part.n, part.classes)
    return messages


class FirstBatchLoader:
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
        """The first mini-batch."""
        return self.first or next(iter(self))
