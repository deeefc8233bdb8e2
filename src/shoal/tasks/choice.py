"""The tasks by name, and which one a network does."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from shoal.batches import Batch, batches, call, device_of
from shoal.errors import DataError, UsageError, did_you_mean
from shoal.measure import Reading, reading_of
from shoal.outputs import Outputs, as_names, chosen_outputs, read_outputs
from shoal.plugins import Plugin, PluginTable
from shoal.preserve import evaluating
from shoal.tasks.classification import CLASSIFICATION
from shoal.tasks.denoising import DENOISING
from shoal.tasks.detection import DETECTION
from shoal.tasks.embedding import EMBEDDING
from shoal.tasks.regression import REGRESSION
from shoal.tasks.restoration import RESTORATION
from shoal.tasks.segmentation import SEGMENTATION
from shoal.tasks.seq2seq import SEQ2SEQ
from shoal.tasks.task import Task, guarded


def _from_plugin(plugin: Plugin) -> Task:
    return plugin.expect(Task, "a shoal.tasks.Task")


# In the order in which they are tried: what a network's class says comes before what labels suggest.
_BUILTIN = (
    DETECTION,
    SEGMENTATION,
    SEQ2SEQ,
    DENOISING,
    EMBEDDING,
    CLASSIFICATION,
    RESTORATION,
    REGRESSION,
)
TASKS: PluginTable[Task] = PluginTable("shoal.tasks", {task.name: task for task in _BUILTIN}, _from_plugin)


def task_named(name: str) -> Task:
    """The task of this name.

    Raises:
        UsageError: there is no such task.
        PluginError: it cannot be loaded.
    """
    if name not in TASKS:
        raise UsageError(f"there is no task '{name}'", did_you_mean(name, list(TASKS)))
    return TASKS[name]


@dataclass(frozen=True)
class TaskChoice:
    """A task and why it was taken; no task where nothing says which it is.

    Args:
        task: or None.
        why: for the record.
        asked: whether the user named it; then it also says how outputs are read.
    """

    task: Task | None
    why: str
    asked: bool

    @property
    def name(self) -> str | None:
        """Of the task, where there is one."""
        return self.task.name if self.task is not None else None


NO_TASK = TaskChoice(None, "nobody asked", asked=False)


def choose_task(asked: Task | str | None, model: nn.Module, outputs: Outputs, labels: Any) -> TaskChoice:
    """The task that the user names, else the one that the network's class or its labels tell.

    Raises:
        UsageError: there is no task of this name.
    """
    if asked is not None:
        task = task_named(asked) if isinstance(asked, str) else asked
        return TaskChoice(task, "as asked", asked=True)
    for task in _BUILTIN:
        why = task.recognize(model, outputs, labels)
        if why is not None:
            return TaskChoice(task, why, asked=False)
    return TaskChoice(None, "neither the network's class nor the labels tell what it is for", asked=False)


@dataclass(frozen=True)
class OutputRequest:
    """What the user says about the outputs of a network.

    Args:
        names: of the outputs that count; None for all, or for those of the task that was asked for.
        task: what the network is for, or its name; None where it is to be recognised.
    """

    names: str | Sequence[str] | None = None
    task: Task | str | None = None

    def __post_init__(self) -> None:
        if self.task is not None and not isinstance(self.task, (Task, str)):
            raise UsageError(f"task is {self.task!r}, expected a task or the name of one", f"There are {_listed()}.")
        if isinstance(self.task, str):
            task_named(self.task)

    def known(self, model: nn.Module) -> TaskChoice:
        """The task that is asked for, or that the network's class tells; the network is not run."""
        return choose_task(self.task, model, Outputs({}, {}), None)

    def choose(self, model: nn.Module, first: Batch) -> TaskChoice:
        """The task of a network: see `known`; else from what it returns for a mini-batch, and its labels.

        Its metrics look at the outputs that the user names.

        Raises:
            UsageError: there is no such output.
        """
        choice, names = self.known(model), as_names(self.names)
        if first.target is not None and (choice.task is None or _is_refuted(choice, model, first.target)):
            here = first.to(device_of(model))
            with evaluating(model), torch.no_grad():
                outputs = read_outputs(call(model, here))
            outputs = replace(outputs, tensors=chosen_outputs(outputs, names))
            choice = choose_task(None, model, outputs, here.target)
        return replace(choice, task=choice.task.about(names)) if choice.task is not None and names else choice

    def read(
        self, choice: TaskChoice, model: nn.Module, data: Iterable[Any], labelled: Iterable[Batch] = ()
    ) -> Reading:
        """How the outputs of a network are read, see `measure.reading_of`.

        Raises:
            UsageError: there is no such output.
            DataError: there is no tensor in the output, or labels are out of range.
        """
        names, task = as_names(self.names), choice.task
        expected = task.expectation if task is not None and (choice.asked or task.decides) else None
        if choice.asked and task is not None:
            expected = replace(expected, names=None) if expected is not None else None
            outputs = _first_outputs(model, data)
            names = names or task.names(outputs)
            _check_fit(task, model, chosen_outputs(outputs, names))
        return reading_of(model, data, names, labelled, expected)


def _is_refuted(choice: TaskChoice, model: nn.Module, target: Tensor) -> bool:
    """Whether labels are such that a network does not do what its class alone tells."""
    if choice.asked or choice.task is None:
        return False
    return choice.task.recognize(model, Outputs({}, {}), target) is None


def _first_outputs(model: nn.Module, data: Iterable[Any]) -> Outputs:
    """What the network returns for the first mini-batch."""
    first = next(batches(data, device_of(model)), None)
    if first is None:
        raise DataError("there is no data to measure on", "Give a loader with at least one mini-batch.")
    with evaluating(model), torch.no_grad():
        return read_outputs(call(model, first))


def _check_fit(task: Task, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a task that the outputs that count cannot be of.

    Raises:
        UsageError: with the reason.
    """
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    reason = guarded(f"the task {task.name}", "obstacle", task.obstacle, model, floating)
    if reason is not None:
        raise UsageError(
            f"the task {task.name} does not fit {type(model).__name__}: {reason}",
            f"Leave task= (--task) out to have it recognised, or name another: {_listed()}.",
        )


def _listed() -> str:
    return ", ".join(TASKS)
