"""What a choice is made from: a copy of the network, dissected, the samples, what is asked, and how to measure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from shoal.batches import Batch, batches, first_samples
from shoal.blocks import BlockGraph, analyze
from shoal.errors import DataError
from shoal.pipeline.config import MeasureConfig
from shoal.pipeline.goals import Goal
from shoal.pipeline.judging import Judge
from shoal.preserve import copied
from shoal.progress import ProgressCallback
from shoal.scanning import DamageFunction, OutputDamage
from shoal.tasks import OutputRequest, TaskChoice, check_annotations, check_metrics, usual_outputs
from shoal.tasks.choice import NO_TASK
from shoal.workers import LocalWorkers, Workers


@dataclass(frozen=True)
class CompressContext:
    """Everything a choice needs.

    Args:
        graph: a copy of the original, dissected, in eval mode.
        model: the original, to copy.
        goal: what is asked.
        chosen_on: calibration mini-batches.
        judged_on: validation mini-batches, or None.
        settings: how to measure.
        damage: what a change does to the output, for each sample, and how outputs are read.
        task: what the network is for, and why that is known.
        progress: called with (stage, done, total).
        workers: who measures candidates.
    """

    graph: BlockGraph
    model: nn.Module
    goal: Goal
    chosen_on: list[Batch]
    judged_on: list[Batch] | None
    settings: MeasureConfig
    damage: OutputDamage
    progress: ProgressCallback
    task: TaskChoice = NO_TASK
    workers: Workers = field(default_factory=LocalWorkers)

    def judge(self, data: Sequence[Batch]) -> Judge:
        """Compares changed networks with the original on validation data."""
        return Judge(self.graph.model, data, self.damage.reading, self.task.task)


def materialize(
    calibration: Iterable[Any],
    validation: Iterable[Any] | None,
    settings: MeasureConfig,
    device: Any,
    *,
    by_plan: bool = False,
) -> tuple[list[Batch], list[Batch] | None]:
    """The mini-batches to choose on and to judge on, kept, so that every candidate sees the very same ones.

    Args:
        calibration: to choose on.
        validation: to judge on, or None.
        settings: how many at most.
        device: where they are put.
        by_plan: whether replacements are fitted on them, which takes more.

    Raises:
        DataError: there are none.
    """
    chosen_on = _gathered(calibration, settings.num_images(by_plan=by_plan), device, "calibration")
    if validation is None:
        return chosen_on, None
    return chosen_on, _gathered(validation, settings.validation_images, device, "validation")


def build_context(
    model: nn.Module,
    chosen_on: list[Batch],
    judged_on: list[Batch] | None,
    goal: Goal,
    settings: MeasureConfig,
    damage: DamageFunction | str | None,
    progress: ProgressCallback,
    output: OutputRequest | None = None,
) -> CompressContext:
    """Dissect a copy of the network, and put everything together.

    Raises:
        SurgeryError: a network that cannot be copied.
        NonFiniteError, ModelRaisedError: data, weights or model at fault.
    """
    progress("tracing", 0, 1)
    graph = analyze(copied(model).eval(), chosen_on[0].take(2))
    output = output or OutputRequest()
    samples = [*chosen_on[:1], *(judged_on or [])[:1]]
    task = output.choose(graph.model, next((batch for batch in samples if batch.target is not None), chosen_on[0]))
    reading = output.read(task, graph.model, chosen_on, judged_on or [])
    reading.check_labels([*chosen_on, *(judged_on or [])])
    if task.task is not None:  # a metric that raises would do so when all is done
        check_annotations(task.task, [*chosen_on, *(judged_on or [])])
        with usual_outputs(graph.model):
            check_metrics(task.task, graph.model, samples[-1])
    return CompressContext(
        graph, model, goal, chosen_on, judged_on, settings, OutputDamage.of(reading, damage), progress, task
    )


def _gathered(loader: Iterable[Any], limit: int, device: Any, name: str) -> list[Batch]:
    gathered = list(first_samples(batches(loader, device), limit))
    if not gathered:
        raise DataError(f"the {name} data is empty", "Give at least one mini-batch.")
    return gathered
