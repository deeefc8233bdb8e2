"""Students learn side by side: the teacher runs once for a mini-batch, and every student learns from its own span.

Input and output of each span are recorded as the teacher runs, so that errors of one student do not reach another.
Batch norms of the students keep their statistics: those of the blocks they were copied from, or slices of these.
Source: blockwise local distillation, Bercovich et al. 2024, Puzzle, arXiv:2411.19146, Sec. 3; LLM-Streamline,
arXiv:2403.19135.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from shoal.batches import Batch, call
from shoal.blocks import Anatomy
from shoal.errors import DataError, NonFiniteError
from shoal.preserve import evaluating
from shoal.replace.fitting import Fitted
from shoal.replace.spans import Span
from shoal.replace.students.making import student_of
from shoal.replace.students.wanted import WantedStudent

_RATE = 1e-3
_CLIP = 1.0
_WARM_UP = 0.05
_LOOKS = 5
# Held-out samples that a look is taken on, at most, and their share; samples in a step, at most: maps of features hold
# many positions each, and many small steps do more than few large ones.
_LOOKED_ON, _HELD_OUT, _SAMPLES = 128, 0.2, 32
# A curve is flat where the last look won less than this share of the error; that is worth a second block only above so
# much of the variance, and the second block has to win at least so much of it.
_FLAT, _HIGH, _WINS = 0.15, 0.02, 0.8
# Of the budget: what students of one block and narrow ones get where students of two may follow.
_FIRST = 0.7

Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Trained:
    """Students that learned, and what is to be said about it."""

    fitted: list[Fitted]
    notes: list[str] = field(default_factory=list)


def train_students(
    anatomy: Anatomy,
    batches: Sequence[Batch],
    wanted: Sequence[WantedStudent],
    *,
    doubles: Mapping[Span, WantedStudent] | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    tick: Tick | None = None,
) -> Trained:
    """Train every student of `wanted`; where one block flattens out too high, two are tried.

    Args:
        anatomy: the original; it is left as it was.
        batches: calibration mini-batches, read again and again in smaller parts; a fifth of the samples is held out.
        wanted: what to train.
        doubles: what to try for a span where one block is not enough; spans that are not in it stay with one.
        steps: mini-batches in all; or
        seconds: how long in all. Exactly one of the two. Only steps give the same students every time.
        seed: of the order of the mini-batches.
        tick: called with (done, of).

    Returns:
        The students that are no worse than they began; `r2_held_out` is of the span's output.

    Raises:
        DataError: too little data to hold any out.
        NonFiniteError: NaN or Inf in the activations of the original.
    """
    if not wanted:
        return Trained([])
    train, held_out = _parted(batches)
    doubles = doubles or {}
    first = _FIRST if doubles else 1.0
    school = _School(anatomy, train, held_out, seed, tick)
    learners = school.taught(wanted, _Limit(steps, seconds, 0.0, first))
    flat = [one for one in learners if one.kind == "block" and one.flattened_high]
    doubled = [doubles[one.wanted.span] for one in flat if one.wanted.span in doubles]
    if not learners:
        return Trained([])
    errors = sorted(one.error for one in learners)
    notes = [
        f"{len(learners)} students learned side by side for {school.steps} steps in {school.seconds:.0f} s; their "
        f"held-out error as a share of the variance: median {errors[len(errors) // 2]:.3f}"
    ]
    if doubled:
        pairs = school.taught(doubled, _Limit(steps, seconds, first, 1.0))
        by_span = {one.wanted.span: one for one in flat}
        better = [one for one in pairs if one.error <= _WINS * by_span[one.wanted.span].error]
        learners += better
        notes.append(
            f"one block flattened out above {100 * _HIGH:.0f} % of the variance for {len(doubled)} spans; two blocks "
            f"were tried there and are clearly better for {len(better)}"
        )
    failed = [one for one in learners if one.diverged]
    if failed:
        notes.append(f"{len(failed)} students diverged and were stopped; their last good weights are kept")
    return Trained([one.fitted() for one in learners], notes)


@dataclass(frozen=True)
class _Limit:
    """A part of a budget: from the share `start` of it to the share `stop`."""

    steps: int | None
    seconds: float | None
    start: float
    stop: float

    def spent(self, step: int, seconds: float) -> float:
        """How much of this part is used up; 1 is all of it."""
        part = self.stop - self.start
        if self.steps is not None:
            return step / max(1, round(self.steps * part))
        return seconds / ((self.seconds or 1.0) * part)


class _Learner:
    """One student, its optimizer, its best weights so far and its curve: the held-out error as a share of variance."""

    def __init__(self, wanted: WantedStudent) -> None:
        self.wanted, self.kind = wanted, wanted.kind
        module = student_of(wanted.stand_in, wanted.original)
        self.dtype = next(module.parameters()).dtype
        self.module = module.float() if self.dtype.itemsize < 4 else module
        self.module.requires_grad_(requires_grad=True)
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=_RATE)
        self.curve: list[float] = []
        self.best = _copied(self.module)
        self.diverged = False
        self.fit_error = math.nan

    @property
    def error(self) -> float:
        """The least held-out error."""
        return min(self.curve)

    @property
    def flattened_high(self) -> bool:
        """Whether more steps would win little, and much is left to be won."""
        return len(self.curve) > 2 and self.curve[-1] > max(_HIGH, (1 - _FLAT) * self.curve[-3])

    def step(self, pair: "_Pair", rate: float) -> None:
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

    def loss(self, pair: "_Pair") -> Tensor:
        """The squared error as a share of the variance of what is wanted."""
        x, *others = (_wide(one, self.module) for one in pair.args)
        found = self.module(
            x.clone(), *others, **{key: _wide(value, self.module) for key, value in pair.kwargs.items()}
        )
        wanted = pair.output.to(found.dtype)
        return (found - wanted).square().mean() / wanted.var(correction=0).clamp(min=1e-12)

    def looked(self, error: float) -> None:
        """Take note of the held-out error; the best weights are kept."""
        if not math.isfinite(error):
            self.diverged = True
            return
        if not self.curve or error < self.error:
            self.best = _copied(self.module)
        self.curve.append(error)

    def fitted(self) -> Fitted:
        """As every other stand-in."""
        self.module.load_state_dict(self.best)
        self.module.to(self.dtype).requires_grad_(requires_grad=True)
        fit = 1 - (self.fit_error if math.isfinite(self.fit_error) else self.error)
        wanted = self.wanted
        return Fitted(wanted.span, wanted.kind, wanted.stand_in, self.module.eval(), 0.0, fit, 1 - self.error)


@dataclass(frozen=True, eq=False)
class _Pair:
    """What a span was given, and what it gave back."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor


@dataclass
class _School:
    """The teacher and the data."""

    anatomy: Anatomy
    train: list[Batch]
    held_out: list[Batch]
    seed: int
    tick: Tick | None
    steps: int = 0
    seconds: float = 0.0

    def taught(self, wanted: Sequence[WantedStudent], limit: _Limit) -> list[_Learner]:
        """New learners, all of them taught until the limit; those that learned nothing finite are left out."""
        learners = [_Learner(one) for one in wanted]
        self._look(learners)
        started, step, looks = time.perf_counter(), 0, 0
        order = self._order()
        while (spent := limit.spent(step, time.perf_counter() - started)) < 1:
            rate = _RATE * _shape(spent)
            pairs = self._pairs(next(order), learners)
            for one in learners:
                one.step(pairs[one.wanted.span.name], rate)
            step += 1
            spent = limit.spent(step, time.perf_counter() - started)
            if self.tick is not None:
                self.tick(round(100 * (limit.start + min(1.0, spent) * (limit.stop - limit.start))), 100)
            if spent * _LOOKS >= looks + 1 or spent >= 1:
                looks = int(spent * _LOOKS)
                self._look(learners)
        self.steps, self.seconds = step, time.perf_counter() - started
        return [one for one in learners if one.curve]

    def _order(self) -> Iterator[Batch]:
        """Mini-batch after mini-batch, in a new order each time round."""
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            for number in torch.randperm(len(self.train), generator=generator).tolist():
                yield self.train[number]

    def _look(self, learners: Sequence[_Learner]) -> None:
        """Judge everybody on the samples held out."""
        sums = dict.fromkeys(range(len(learners)), 0.0)
        count = 0
        for batch in self.held_out:
            pairs = self._pairs(batch, learners)
            count += batch.size
            with torch.no_grad():
                for number, one in enumerate(learners):
                    if not one.diverged:
                        sums[number] += batch.size * float(one.loss(pairs[one.wanted.span.name]))
        for number, one in enumerate(learners):
            if not one.diverged:
                one.looked(sums[number] / count)

    def _pairs(self, batch: Batch, learners: Sequence[_Learner]) -> dict[str, _Pair]:
        """What every span of the learners was given and gave back on one mini-batch, by the span's name."""
        spans = {one.wanted.span.name: one.wanted.span for one in learners}
        model = self.anatomy.model
        paths = {span.paths[0] for span in spans.values()} | {span.paths[-1] for span in spans.values()}
        with evaluating(model), _listening(model, sorted(paths)) as (given, returned):
            call(model, batch)
        for path, value in returned.items():
            if not bool(torch.isfinite(value).all()):
                raise NonFiniteError(f"NaN or Inf in the activations at '{path}'", "Check weights and data.")
        return {name: _Pair(*given[span.paths[0]], returned[span.paths[-1]]) for name, span in spans.items()}


@contextmanager
def _listening(
    model: nn.Module, paths: Sequence[str]
) -> Iterator[tuple[dict[str, tuple[tuple[Any, ...], dict[str, Any]]], dict[str, Tensor]]]:
    """What modules are given (the stream as a copy: a block may work in place) and what they return, by path."""
    given: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    returned: dict[str, Tensor] = {}

    def entering(path: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            given[path] = ((args[0].clone(), *args[1:]), dict(kwargs))

        return hook

    def leaving(path: str) -> Any:
        def hook(_: nn.Module, args: Any, output: Tensor) -> None:
            returned[path] = output.clone()

        return hook

    with ExitStack() as stack:
        for path in paths:
            module = model.get_submodule(path)
            stack.callback(module.register_forward_pre_hook(entering(path), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(leaving(path)).remove)
        yield given, returned


def _parted(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Mini-batches to learn from, and others: the last samples, a fifth of them, at most so many as a look takes."""
    samples = sum(batch.size for batch in batches)
    if samples < 2:
        raise DataError(f"{samples} calibration samples, expected at least 2", "Some are held out.")
    left = min(_LOOKED_ON, max(1, round(_HELD_OUT * samples)))
    train: list[Batch] = []
    held_out: list[Batch] = []
    for batch in reversed(batches):
        held = min(left, batch.size)
        if held:
            held_out.append(batch.rest(batch.size - held))
        if held < batch.size:
            train += _in_parts(batch.take(batch.size - held))[::-1]
        left -= held
    return train[::-1], held_out[::-1]


def _in_parts(batch: Batch) -> list[Batch]:
    """In parts of at most so many samples as a step takes."""
    found = []
    while batch.size > _SAMPLES:
        found.append(batch.take(_SAMPLES))
        batch = batch.rest(_SAMPLES)
    return [*found, batch]


def _shape(spent: float) -> float:
    """The rate over the budget: up in a straight line, then down along a cosine."""
    if spent < _WARM_UP:
        return max(0.1, spent / _WARM_UP)
    return (1 + math.cos(math.pi * spent)) / 2


def _wide(value: Any, module: nn.Module) -> Any:
    """A tensor of numbers in the precision the student learns in."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.to(next(module.parameters()).dtype)


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
