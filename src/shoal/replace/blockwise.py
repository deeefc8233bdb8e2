"""Students learn side by side: the teacher runs once for a mini-batch, and every student learns from its own span.

Input and output of each span are recorded as the teacher runs, so that errors of one student do not reach another.
Batch norms of the students keep their statistics: those of the blocks they were copied from, or slices of these.
Where there are more students than fit into memory, one portion of them learns after the other.
Source: blockwise local distillation, Bercovich et al. 2024, Puzzle, arXiv:2411.19146, Sec. 3; LLM-Streamline,
arXiv:2403.19135.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from shoal.batches import Batch, call
from shoal.blocks import BlockGraph
from shoal.errors import DataError, NonFiniteError
from shoal.preserve import copied_arguments, evaluating
from shoal.replace.fitting import FittedReplacement
from shoal.replace.kv_cache import without_kv_cache
from shoal.replace.spans import Span
from shoal.replace.student_trainer import IOPair, LearnedStudent, MemoryBatch, StudentTrainer, memory_batches
from shoal.replace.students.specs import StudentSpec

# What students that learn at the same time hold at most, in bytes: weights, moments and best weights of them all.
_MEMORY = 4e9
_RATE = 1e-3
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
class TrainedStudent:
    """Students that learned, and what is to be said about it."""

    fitted: list[FittedReplacement]
    notes: list[str] = field(default_factory=list)


def train_students(
    anatomy: BlockGraph,
    batches: Sequence[Batch],
    wanted: Sequence[StudentSpec],
    *,
    doubles: Mapping[Span, StudentSpec] | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    memory: float = _MEMORY,
    seed: int = 0,
    tick: Tick | None = None,
) -> TrainedStudent:
    """Train every student of `wanted`; where one block flattens out too high, two are tried.

    Args:
        anatomy: the original; it is left as it was.
        batches: calibration mini-batches, read again and again in smaller parts; a fifth of the samples is held out.
        wanted: what to train.
        doubles: what to try for a span where one block is not enough; spans that are not in it stay with one.
        steps: mini-batches in all; or
        seconds: how long in all. Exactly one of the two. Only steps give the same students every time.
        memory: bytes for the weights and optimizers of students that learn at the same time. More students learn in
            portions, each with its share of the budget. Those that are done are held as well, their weights alone.
        seed: of the order of the mini-batches.
        tick: called with (done, of).

    Returns:
        The students that are no worse than they began; `r2_held_out` is of the span's output.

    Raises:
        DataError: too little data to hold any out.
        NonFiniteError: NaN or Inf in the activations of the original.
        SurgeryError: the network has no such blocks.
    """
    if not wanted:
        return TrainedStudent([])
    train, held_out = _parted(batches)
    doubles = doubles or {}
    first = _FIRST if doubles else 1.0
    school = _School(anatomy, train, held_out, seed, memory, tick)
    term = school.taught(wanted, _Limit(steps, seconds, 0.0, first))
    learned = term.learned
    if not learned:
        return TrainedStudent([])
    notes = [term.said()]
    flat = {one.wanted.span: one for one in learned if one.wanted.kind == "block" and _flattened_high(one)}
    doubled = [doubles[span] for span in flat if span in doubles]
    if doubled:
        pairs = school.taught(doubled, _Limit(steps, seconds, first, 1.0))
        better = [one for one in pairs.learned if one.error <= _WINS * flat[one.wanted.span].error]
        learned = learned + better
        notes.append(
            f"one block flattened out above {100 * _HIGH:.0f} % of the variance for {len(doubled)} spans; two blocks "
            f"were tried there{pairs.in_portions()} and are clearly better for {len(better)}"
        )
    failed = [one for one in learned if one.diverged]
    if failed:
        notes.append(f"{len(failed)} students diverged and were stopped; their last good weights are kept")
    return TrainedStudent([one.fitted for one in learned], notes)


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

    def parts(self, portions: Sequence[MemoryBatch]) -> list["_Limit"]:
        """One for each portion: of steps all get the same, of time a share by size, so that it is about as many."""
        shares = [1 if self.steps is not None else one.bytes for one in portions]
        edges = [sum(shares[:number]) / sum(shares) for number in range(len(shares) + 1)]
        places = [self.start + edge * (self.stop - self.start) for edge in edges]
        return [replace(self, start=a, stop=b) for a, b in pairwise(places)]


@dataclass
class _Term:
    """What students learned in one part of the budget, how many steps each portion took, and how long all of them."""

    memory: float
    learned: list[LearnedStudent] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def said(self) -> str:
        """How many learned how long, and how well."""
        errors = sorted(one.error for one in self.learned)
        least, most = min(self.steps), max(self.steps)
        steps = f"{most} steps" if least == most else f"{least} to {most} steps"
        each = " each" if len(self.steps) > 1 else ""
        return (
            f"{len(errors)} students learned side by side{self.in_portions()} for {steps}{each} in "
            f"{self.seconds:.0f} s; their held-out error as a share of the variance: median "
            f"{errors[len(errors) // 2]:.3f}"
        )

    def in_portions(self) -> str:
        """Nothing where all students fitted into memory."""
        if len(self.steps) < 2:
            return ""
        return (
            f" in {len(self.steps)} portions, one after the other, since memory for them is {self.memory / 1e9:.3g} GB,"
        )


@dataclass
class _School:
    """The teacher and the data."""

    anatomy: BlockGraph
    train: list[Batch]
    held_out: list[Batch]
    seed: int
    memory: float
    tick: Tick | None

    def taught(self, wanted: Sequence[StudentSpec], limit: _Limit) -> _Term:
        """New learners, a portion at a time, until the limit; those that learned nothing finite are left out."""
        term = _Term(self.memory)
        portions = memory_batches(wanted, self.memory)
        for portion, part in zip(portions, limit.parts(portions), strict=True):
            self._portion(portion.members, part, term)
        return term

    def _portion(self, wanted: Sequence[StudentSpec], limit: _Limit, term: _Term) -> None:
        """Teach some side by side; optimizers go with the end of this function."""
        learners = [StudentTrainer(one) for one in wanted]
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
        term.learned += [one.learned() for one in learners if one.curve]
        term.steps.append(step)
        term.seconds += time.perf_counter() - started

    def _order(self) -> Iterator[Batch]:
        """Mini-batch after mini-batch, in a new order each time round."""
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            for number in torch.randperm(len(self.train), generator=generator).tolist():
                yield self.train[number]

    def _look(self, learners: Sequence[StudentTrainer]) -> None:
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

    def _pairs(self, batch: Batch, learners: Sequence[StudentTrainer]) -> dict[str, IOPair]:
        """What every span of the learners was given and gave back on one mini-batch, by the span's name."""
        spans = {one.wanted.span.name: one.wanted.span for one in learners}
        model = self.anatomy.model
        paths = {span.paths[0] for span in spans.values()} | {span.paths[-1] for span in spans.values()}
        # A cache would be handed to the students too, with the teacher's keys and values in it.
        with evaluating(model), without_kv_cache(model), _listening(model, sorted(paths)) as (given, returned):
            call(model, batch)
        for path, value in returned.items():
            if not bool(torch.isfinite(value).all()):
                raise NonFiniteError(f"NaN or Inf in the activations at '{path}'", "Check weights and data.")
        return {
            name: IOPair(
                *given[span.paths[0]], returned[span.paths[-1]], _counted(batch, span, returned[span.paths[-1]])
            )
            for name, span in spans.items()
        }


@contextmanager
def _listening(
    model: nn.Module, paths: Sequence[str]
) -> Iterator[tuple[dict[str, tuple[tuple[Any, ...], dict[str, Any]]], dict[str, Tensor]]]:
    """What modules are given (as a copy: a block may work in place) and what they return, by path."""
    given: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    returned: dict[str, Tensor] = {}

    def entering(path: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            given[path] = copied_arguments((args, kwargs))

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


def _counted(batch: Batch, span: Span, output: Tensor) -> Tensor | None:
    """Which positions of a span's output are no padding; None where all are, or no mask of that shape is given."""
    if span.layout == "channels_first":
        return None
    counted = batch.counted(output.shape[:-1])
    # Nothing but padding is nothing to learn from; as if there were no mask, rather than a mean over no number.
    return counted.to(output.device) if counted is not None and bool(counted.any()) else None


def _flattened_high(one: LearnedStudent) -> bool:
    """Whether more steps would win little, and much is left to be won."""
    return len(one.curve) > 2 and one.curve[-1] > max(_HIGH, (1 - _FLAT) * one.curve[-3])


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
