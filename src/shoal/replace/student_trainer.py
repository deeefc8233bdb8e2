"""One student, trained on the inputs and outputs of its span; and students grouped so that they fit into memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shoal.replace.fitting import FittedReplacement
from shoal.replace.kv_cache import is_kv_cache
from shoal.replace.students.build import student_of
from shoal.replace.students.specs import StudentSpec
from shoal.training.optim import ResumableOptimizer

_CLIP = 1.0


@dataclass(frozen=True, eq=False)
class IOPair:
    """The inputs of a span, and its output.

    Args:
        args: positional arguments, the stream first.
        kwargs: keyword arguments.
        output: the stream that left the span.
        counted: which positions of it are not padding, (samples, positions); None: all.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor
    counted: Tensor | None = None


@dataclass(frozen=True, eq=False)
class TrainedStudent:
    """A student after training, and its curve: the held-out error as a share of the variance at every evaluation."""

    spec: StudentSpec
    curve: tuple[float, ...]
    diverged: bool
    fitted: FittedReplacement

    @property
    def error(self) -> float:
        """The least held-out error."""
        return min(self.curve)


class StudentTrainer:
    """One student, its optimizer, its best weights so far and its curve."""

    def __init__(self, spec: StudentSpec) -> None:
        self.spec = spec
        module = student_of(spec.stand_in, spec.original)
        self.dtype = next(module.parameters()).dtype
        self.module = module.float() if self.dtype.itemsize < 4 else module
        self.module.requires_grad_(requires_grad=True)
        self.optimizer = ResumableOptimizer(self.module, (), torch.optim.Adam)
        self.curve: list[float] = []
        self.best = _copied_state(self.module)
        self.diverged = False
        self.fit_error = math.nan

    def step(self, pair: IOPair, lr: float) -> None:
        """Learn from one mini-batch."""
        if self.diverged:
            return
        loss = self.loss(pair)
        if not bool(torch.isfinite(loss)):
            self.diverged = True
            return
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), _CLIP)
        self.optimizer.step(lr)
        self.fit_error = float(loss.detach())

    def loss(self, pair: IOPair) -> Tensor:
        """The squared error as a share of the variance of the target; padding does not count."""
        like = next(self.module.parameters())
        x, *args = (_adapted(value, like) for value in pair.args)
        kwargs = {key: _adapted(value, like) for key, value in pair.kwargs.items()}
        output = self.module(x.clone(), *args, **kwargs)
        target = pair.output.to(output.dtype)
        if pair.counted is not None:
            output, target = output[pair.counted], target[pair.counted]
        return (output - target).square().mean() / target.var(correction=0).clamp(min=1e-12)

    def record_evaluation(self, error: float) -> None:
        """Add the held-out error to the curve; the best weights are kept."""
        if not math.isfinite(error):
            self.diverged = True
            return
        if not self.curve or error < min(self.curve):
            self.best = _copied_state(self.module)
        self.curve.append(error)

    def result(self) -> TrainedStudent:
        """What came out, without the optimizer; only where an evaluation was finite."""
        self.module.load_state_dict(self.best)
        self.module.to(self.dtype).requires_grad_(requires_grad=True)
        error, spec = min(self.curve), self.spec
        fit = 1 - (self.fit_error if math.isfinite(self.fit_error) else error)
        fitted = FittedReplacement(spec.span, spec.kind, spec.stand_in, self.module.eval(), 0.0, fit, 1 - error)
        return TrainedStudent(spec, tuple(self.curve), self.diverged, fitted)


def _adapted(value: Any, like: Tensor) -> Any:
    """An argument as a student takes it: numbers in its precision, and no cache, since that is the teacher's."""
    if isinstance(value, Tensor):
        return value.to(like.dtype) if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(_adapted(item, like) for item in value)
    return None if is_kv_cache(value) else value


def _copied_state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


# The weights, Adam's two moments and the best weights so far. Only one student at a time has gradients.
_COPIES = 4
_MIN_BYTES = 4  # of a value: half precision is trained in single


@dataclass(frozen=True)
class MemoryBatch:
    """Students that are trained side by side, and how much memory they need for it."""

    members: list[StudentSpec]
    bytes: int


def memory_batches(specs: Sequence[StudentSpec], max_bytes: float) -> list[MemoryBatch]:
    """The students in their order, in groups that need at most this memory; a student that needs more has its own.

    Raises:
        SurgeryError: the network has no such blocks.
    """
    groups: list[MemoryBatch] = []
    for spec in specs:
        size = training_bytes(spec)
        if groups and groups[-1].bytes + size <= max_bytes:
            last = groups.pop()
            groups.append(MemoryBatch([*last.members, spec], last.bytes + size))
        else:
            groups.append(MemoryBatch([spec], size))
    return groups


def training_bytes(spec: StudentSpec) -> int:
    """What a student holds while it is trained, without activations.

    Raises:
        SurgeryError: the network has no such blocks.
    """
    # Made and dropped: slices of weights have no size before they are cut.
    parameters = student_of(spec.stand_in, spec.original).parameters()
    return _COPIES * sum(parameter.numel() * max(_MIN_BYTES, parameter.element_size()) for parameter in parameters)
