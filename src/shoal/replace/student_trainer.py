"""One student as it learns from what its span was given and gave back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shoal.preserve import copied_arguments
from shoal.replace.fitting import FittedReplacement
from shoal.replace.kv_cache import is_kv_cache
from shoal.replace.students.build import student_of
from shoal.replace.students.specs import StudentSpec

_CLIP = 1.0


@dataclass(frozen=True, eq=False)
class IOPair:
    """What a span was given, and what it gave back.

    Args:
        args: positional arguments, the stream first.
        kwargs: keyword arguments.
        output: the stream that left the span.
        counted: which positions of it are no padding, (samples, positions); None: all.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor
    counted: Tensor | None = None


@dataclass(frozen=True, eq=False)
class LearnedStudent:
    """A student that is done, and its curve: the held-out error as a share of the variance at every look."""

    wanted: StudentSpec
    curve: tuple[float, ...]
    diverged: bool
    fitted: FittedReplacement

    @property
    def error(self) -> float:
        """The least held-out error."""
        return min(self.curve)


class StudentTrainer:
    """One student, its optimizer, its best weights so far and its curve."""

    def __init__(self, wanted: StudentSpec) -> None:
        self.wanted = wanted
        module = student_of(wanted.stand_in, wanted.original)
        self.dtype = next(module.parameters()).dtype
        self.module = module.float() if self.dtype.itemsize < 4 else module
        self.module.requires_grad_(requires_grad=True)
        self.optimizer = torch.optim.Adam(self.module.parameters())
        self.curve: list[float] = []
        self.best = _copied(self.module)
        self.diverged = False
        self.fit_error = math.nan

    def step(self, pair: IOPair, rate: float) -> None:
        """Learn from one mini-batch."""
        if self.diverged:
            return
        loss = self.loss(pair)
        if not bool(torch.isfinite(loss)):
            self.diverged = True
            return
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), _CLIP)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.fit_error = float(loss.detach())

    def loss(self, pair: IOPair) -> Tensor:
        """The squared error as a share of the variance of what is wanted; padding does not count."""
        like = next(self.module.parameters())
        args, kwargs = copied_arguments((pair.args, pair.kwargs))  # each student may write into what it gets
        arguments = [_handed(value, like) for value in args]
        found = self.module(*arguments, **{key: _handed(value, like) for key, value in kwargs.items()})
        wanted = pair.output.to(found.dtype)
        if pair.counted is not None:
            found, wanted = found[pair.counted], wanted[pair.counted]
        return (found - wanted).square().mean() / wanted.var(correction=0).clamp(min=1e-12)

    def looked(self, error: float) -> None:
        """Take note of the held-out error; the best weights are kept."""
        if not math.isfinite(error):
            self.diverged = True
            return
        if not self.curve or error < min(self.curve):
            self.best = _copied(self.module)
        self.curve.append(error)

    def learned(self) -> LearnedStudent:
        """What came out, without the optimizer; only where there was a finite look."""
        self.module.load_state_dict(self.best)
        self.module.to(self.dtype).requires_grad_(requires_grad=True)
        error, wanted = min(self.curve), self.wanted
        fit = 1 - (self.fit_error if math.isfinite(self.fit_error) else error)
        fitted = FittedReplacement(wanted.span, wanted.kind, wanted.stand_in, self.module.eval(), 0.0, fit, 1 - error)
        return LearnedStudent(wanted, tuple(self.curve), self.diverged, fitted)


def _handed(value: Any, like: Tensor) -> Any:
    """An argument as a student takes it: numbers in its precision, and no cache, since that is the teacher's."""
    if isinstance(value, Tensor):
        return value.to(like.dtype) if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(_handed(one, like) for one in value)
    return None if is_kv_cache(value) else value


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


# The weights, Adam's two moments and the best weights so far. Gradients are there for one student at a time.
_COPIES = 4
_LEAST_BYTES = 4  # of a number: half precision learns in single


@dataclass(frozen=True)
class MemoryBatch:
    """Students that learn side by side, and how much memory they need for it."""

    members: list[StudentSpec]
    bytes: int


def memory_batches(wanted: Sequence[StudentSpec], most_bytes: float) -> list[MemoryBatch]:
    """`wanted` in its order, in portions that need so much memory at most; one that needs more has its own.

    Raises:
        SurgeryError: the network has no such blocks.
    """
    portions: list[MemoryBatch] = []
    for one in wanted:
        size = bytes_to_learn(one)
        if portions and portions[-1].bytes + size <= most_bytes:
            last = portions.pop()
            portions.append(MemoryBatch([*last.members, one], last.bytes + size))
        else:
            portions.append(MemoryBatch([one], size))
    return portions


def bytes_to_learn(one: StudentSpec) -> int:
    """What a student holds while it learns, without activations.

    Raises:
        SurgeryError: the network has no such blocks.
    """
    # Made and dropped: slices of weights have no size before they are cut.
    module = student_of(one.stand_in, one.original)
    return _COPIES * sum(each.numel() * max(_LEAST_BYTES, each.element_size()) for each in module.parameters())
