"""Checks before a student learns anything: the networks have the same outputs, and the data fits both."""

from torch import Tensor, nn

from shoal.batches import Batch
from shoal.errors import DataError, UsageError
from shoal.intake import packed
from shoal.offloaded import is_offloaded
from shoal.outputs import check_numbers, read_outputs, shown
from shoal.preserve import evaluating
from shoal.recover.trainable import forward_in_format
from shoal.training.budget import TrainingBudget

_SAME_TASK = "Give a teacher of the same task."


def check_in_memory(model: nn.Module) -> None:
    """Refuse a network whose weights are on a disk.

    Raises:
        UsageError: it is offloaded.
    """
    if is_offloaded(model):
        raise UsageError(
            "recovery needs the weights in memory, and some of them are on a disk",
            "Leave out recovery (recover=None, --recover none), or load the network whole.",
        )


def check_cacheable(top_k: int, budget: TrainingBudget, folder: object) -> None:
    """Refuse to keep a teacher's outputs where there is no place for them, or nobody knows how many there will be.

    Args:
        top_k: how many scores are to be kept; 0 for none.
        budget: of the run.
        folder: of the run; None for none.

    Raises:
        UsageError: no folder, or a budget of time.
    """
    if top_k and folder is None:
        raise UsageError(
            "the teacher's outputs are kept on disk (cache_teacher), and there is no folder",
            "Give a folder, or leave out cache_teacher.",
        )
    if top_k and budget.steps is None:
        raise UsageError(
            f"the teacher's outputs are kept for each step (cache_teacher), and a budget of {budget} does not say how "
            "many there are",
            "Give a number of steps, like 2000.",
        )


def check_trainable(model: nn.Module) -> None:
    """Refuse a network whose weights no gradient reaches.

    Raises:
        UsageError: some of them are packed, as those of quantised layers are.
    """
    names = packed(model)
    if names:
        raise UsageError(
            f"recovery trains the weights, and {len(names)} of this network are packed, such as '{names[0]}'",
            "Leave out recovery (recover=None, --recover none), or compress and recover before quantising.",
        )


def check_disjoint(validation: object, **training: object) -> None:
    """Refuse to choose on data that is learned from.

    Args:
        validation: what is chosen on.
        training: what is learned from, by name; None for nothing.

    Raises:
        UsageError: it is the very same object.
    """
    for name, data in training.items():
        if data is not None and data is validation:
            raise UsageError(
                f"the validation data is the very {name} data, and what comes out would be chosen on what it learned",
                "Give validation data of its own.",
            )


def check_labelled(batch: Batch, weight: float) -> None:
    """Refuse training data without labels where the loss was asked to use them.

    Raises:
        DataError: there are none.
    """
    if weight and batch.target is None:
        raise DataError(
            f"the training data has no labels, and the loss was asked to use them (labels={weight:g})",
            "Give training data with labels, or set `labels` to 0: distillation needs none.",
        )


def check_same_outputs(teacher: nn.Module, student: nn.Module, batch: Batch) -> None:
    """Refuse a teacher with other outputs than the student.

    Raises:
        DataError: another number of outputs, or another shape.
        NonFiniteError, ModelRaisedError: a network at fault.
    """
    with evaluating(teacher), evaluating(student):
        expected = read_outputs(forward_in_format(teacher, batch))
        outputs = read_outputs(forward_in_format(student, batch))
    check_numbers(expected.tensors, "the teacher")
    check_numbers(outputs.tensors, "the student")
    for name, tensor in expected.floating.items():
        output = outputs.tensors.get(name)
        if output is None or not output.is_floating_point():
            raise DataError(
                f"the teacher returns {shown(name)}, the student does not", "Give a teacher of the same task."
            )
        if tensor.shape == output.shape:
            continue
        if tensor.dim() == output.dim() == 2:
            raise DataError(
                f"the teacher has {tensor.shape[1]} outputs, the student {output.shape[1]}:"
                " they answer different questions",
                "Give a teacher with the classes of the student, in the same order.",
            )
        raise DataError(
            f"the teacher answers in shape {tuple(tensor.shape)}, the student in {tuple(output.shape)}",
            _SAME_TASK,
        )


def check_unlabelled(unlabelled: Batch, training: Batch) -> None:
    """Refuse extra data that differs in form from the training data.

    Raises:
        DataError: other inputs, another dtype, or another shape of a sample; sequences may be of another length.
    """
    if len(unlabelled.args) != len(training.args) or sorted(unlabelled.kwargs) != sorted(training.kwargs):
        raise DataError(
            f"the unlabelled data has the inputs {_inputs(unlabelled)}, the training data {_inputs(training)}",
            "Give data of the same form.",
        )
    for name, extra in _named(unlabelled).items():
        expected = _named(training)[name]
        same = _sample(extra) == _sample(expected) if expected.is_floating_point() else extra.dim() == expected.dim()
        if not same or extra.dtype != expected.dtype:
            raise DataError(
                f"unlabelled data: samples of shape {_sample(extra)} {extra.dtype}, expected {_sample(expected)}"
                f" {expected.dtype} as in the training data",
                "Bring it to the same size and scale (--size, --mean, --std).",
            )


def _named(batch: Batch) -> dict[str, Tensor]:
    pairs = [*((str(index), value) for index, value in enumerate(batch.args)), *batch.kwargs.items()]
    return {name: value for name, value in pairs if isinstance(value, Tensor)}


def _inputs(batch: Batch) -> str:
    return ", ".join([*(f"#{index}" for index in range(len(batch.args))), *batch.kwargs]) or "(none)"


def _sample(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape[1:])
