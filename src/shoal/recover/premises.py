"""What must hold before a student learns anything: the networks answer alike, and the data fits both."""

from torch import Tensor, nn

from shoal.batches import Batch, call, check_logits, logits_of
from shoal.errors import DataError
from shoal.preserve import evaluating


def check_answers(teacher: nn.Module, student: nn.Module, batch: Batch) -> None:
    """Refuse a teacher that answers something else than the student.

    Raises:
        DataError: another number of outputs, or another shape.
        NonFiniteError, ModelRaisedError: a network at fault.
    """
    with evaluating(teacher), evaluating(student):
        wanted, own = logits_of(call(teacher, batch)), logits_of(call(student, batch))
    check_logits(wanted)
    check_logits(own)
    if wanted.shape == own.shape:
        return
    if wanted.dim() == own.dim() == 2:
        raise DataError(
            f"the teacher has {wanted.shape[1]} outputs, the student {own.shape[1]}: they answer different questions",
            "Give a teacher with the classes of the student, in the same order.",
        )
    raise DataError(
        f"the teacher answers in shape {tuple(wanted.shape)}, the student in {tuple(own.shape)}",
        "Give a teacher of the same task.",
    )


def check_unlabelled(unlabelled: Batch, training: Batch) -> None:
    """Refuse extra data of another form than the training data.

    Raises:
        DataError: other inputs, another dtype, or another shape of a sample; sequences may be of another length.
    """
    if len(unlabelled.args) != len(training.args) or sorted(unlabelled.kwargs) != sorted(training.kwargs):
        raise DataError(
            f"the unlabelled data has the inputs {_inputs(unlabelled)}, the training data {_inputs(training)}",
            "Give data of the same form.",
        )
    for name, one in _named(unlabelled).items():
        other = _named(training)[name]
        same = _sample(one) == _sample(other) if other.is_floating_point() else one.dim() == other.dim()
        if not same or one.dtype != other.dtype:
            raise DataError(
                f"unlabelled data: samples of shape {_sample(one)} {one.dtype}, expected {_sample(other)}"
                f" {other.dtype} as in the training data",
                "Bring it to the same size and scale (--size, --mean, --std).",
            )


def _named(batch: Batch) -> dict[str, Tensor]:
    pairs = [*((str(number), value) for number, value in enumerate(batch.args)), *batch.kwargs.items()]
    return {name: value for name, value in pairs if isinstance(value, Tensor)}


def _inputs(batch: Batch) -> str:
    return ", ".join([*(f"#{number}" for number in range(len(batch.args))), *batch.kwargs]) or "(none)"


def _sample(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape[1:])
