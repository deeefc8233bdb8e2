"""One student, trained on the inputs and outputs of its span; and students grouped so that they fit into memory."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shoal.replace.fitting import FittedReplacement
from shoal.replace.kv_cache import is_kv_cache
from shoal.replace.portions import fill_portions
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
        self.best_score, self.best_error = math.inf, math.inf
        self.answer_weight = 0.0
        self.diverged = False
        self.fit_error = math.nan

    def step(self, pair: IOPair, lr: float, answers: Callable[["StudentTrainer"], Tensor] | None = None) -> None:
        """Learn from one mini-batch: from the end of the span, and from the network's answers where they are given."""
        if self.diverged:
            return
        loss = ends = self.loss(pair)
        if answers is not None:
            loss = ends + self.answer_weight * answers(self)
        if not bool(torch.isfinite(loss)):
            self.diverged = True
            return
        self._backward(loss)
        nn.utils.clip_grad_norm_(self.module.parameters(), _CLIP)
        self.optimizer.step(lr)
        self.fit_error = float(ends.detach())

    def _backward(self, loss: Tensor) -> None:
        """The gradients of the student's own parameters alone: those of the network behind it get none."""
        parameters = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient

    def loss(self, pair: IOPair) -> Tensor:
        """The squared error as a share of the variance of the target; padding does not count."""
        like = next(self.module.parameters())
        x, *args = (adapted(value, like) for value in pair.args)
        kwargs = {key: adapted(value, like) for key, value in pair.kwargs.items()}
        output = self.module(x.clone(), *args, **kwargs)
        target = pair.output.to(output.dtype)
        if pair.counted is not None:
            output, target = output[pair.counted], target[pair.counted]
        return (output - target).square().mean() / target.var(correction=0).clamp(min=1e-12)

    def record_evaluation(self, error: float, damage: float = 0.0) -> None:
        """Add the held-out error to the curve; the weights with the least sum of error and damage are kept.

        Both count as shares of what they are at the first evaluation, before any training.

        Args:
            error: of the end of the span, as a share of its variance.
            damage: to the network's answers with the student in place, where it learns from these too.
        """
        if not math.isfinite(error + damage):
            self.diverged = True
            return
        if not self.curve and damage > 0:
            self.answer_weight = error / damage
        score = error + self.answer_weight * damage
        if score < self.best_score:
            self.best, self.best_score, self.best_error = _copied_state(self.module), score, error
        self.curve.append(error)

    def result(self) -> TrainedStudent:
        """What came out, without the optimizer; only where an evaluation was finite."""
        self.module.load_state_dict(self.best)
        self.module.to(self.dtype).requires_grad_(requires_grad=True)
        error, spec = self.best_error, self.spec
        fit = 1 - (self.fit_error if math.isfinite(self.fit_error) else error)
        fitted = FittedReplacement(spec.span, spec.kind, spec.stand_in, self.module.eval(), 0.0, fit, 1 - error)
        return TrainedStudent(spec, tuple(self.curve), self.diverged, fitted)


def adapted(value: Any, like: Tensor) -> Any:
    """An argument as a student takes it: numbers in its precision, and no cache, since that is the teacher's."""
    if isinstance(value, Tensor):
        return value.to(like.dtype) if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(adapted(item, like) for item in value)
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
    sized = [(spec, training_bytes(spec)) for spec in specs]
    portions = fill_portions(sized, lambda pair: pair[1], max_bytes)
    return [MemoryBatch([spec for spec, _ in portion], sum(size for _, size in portion)) for portion in portions]


def training_bytes(spec: StudentSpec) -> int:
    """What a student holds while it is trained, without activations.

    Raises:
        SurgeryError: the network has no such blocks.
    """
    # Made and dropped: slices of weights have no size before they are cut.
    parameters = student_of(spec.stand_in, spec.original).parameters()
    return _COPIES * sum(parameter.numel() * max(_MIN_BYTES, parameter.element_size()) for parameter in parameters)
