"""Blockwise distillation: the teacher runs once per mini-batch, and every student learns from its own span.

Input and output of each span are recorded as the teacher runs, so that errors of one student do not reach another. In
turns, every student learns from the network's answers too, with it alone in place (see `answers`): each is of use
without the others, and any of them together.
Batch norms of the students keep their statistics: those of the blocks they were copied from, or slices of these.
Where there are more students than fit into memory, they are trained in several groups, one after the other.
Source: blockwise local distillation, Bercovich et al. 2024, Puzzle, arXiv:2411.19146, Sec. 3; LLM-Streamline,
arXiv:2403.19135.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from shoal.batches import Batch, call
from shoal.blocks import BlockGraph
from shoal.errors import DataError, NonFiniteError, count_of
from shoal.outputs import rebuilt
from shoal.preserve import copied_arguments, evaluating
from shoal.replace.answers import AnswerDamage, Answers
from shoal.replace.fitting import FittedReplacement
from shoal.replace.kv_cache import without_kv_cache
from shoal.replace.spans import Span
from shoal.replace.student_trainer import IOPair, MemoryBatch, StudentTrainer, TrainedStudent, memory_batches
from shoal.replace.students.specs import StudentSpec
from shoal.training.budget import TrainingBudget
from shoal.training.loop import BudgetLoop, LoopState
from shoal.training.optim import cosine_lr

# What students that are trained at the same time hold at most, in bytes: weights, moments and best weights of them all.
_MEMORY = 4e9
_LR = 1e-3
_WARM_UP, _MIN_WARM_UP = 0.05, 0.1
_EVALUATIONS = 5
# Held-out samples that an evaluation uses, at most, and their share; samples in a step, at most: feature maps hold many
# positions each, and many small steps do more than few large ones.
_MAX_EVALUATED, _HELD_OUT, _MAX_SAMPLES = 128, 0.2, 32
# A curve is flat where the last evaluation won less than this share of the error; that is worth a second block only
# above this share of the variance, and the second block has to reduce the error to at most this share.
_FLAT, _HIGH, _WINS = 0.15, 0.02, 0.8
# Of the budget: for students of one block and narrow ones, where students of two may follow.
_FIRST_SHARE = 0.7

BudgetProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class TrainedStudents:
    """Students after training, and notes for the record."""

    fitted: list[FittedReplacement]
    notes: list[str] = field(default_factory=list)


def train_students(
    graph: BlockGraph,
    batches: Sequence[Batch],
    specs: Sequence[StudentSpec],
    *,
    budget: TrainingBudget,
    doubles: Mapping[Span, StudentSpec] | None = None,
    memory: float = _MEMORY,
    seed: int = 0,
    answers: AnswerDamage | None = None,
    on_progress: BudgetProgress | None = None,
) -> TrainedStudents:
    """Train every student; where one block flattens out too high, two are tried.

    Args:
        graph: of the original; it is left as it was.
        batches: calibration mini-batches, read repeatedly in smaller parts; a fifth of the samples is held out.
        specs: the students to train.
        budget: for all of them together. Only a number of steps gives the same students every time.
        doubles: what to try for a span where one block is not enough; spans that are not in it stay with one.
        memory: bytes for the weights and optimizers of students that are trained at the same time. More students are
            trained in groups, each with its share of the budget. Those that are done are held as well, their weights
            alone.
        seed: of the order of the mini-batches.
        answers: how far the network's answers with a student in place are from the original's, for each sample: every
            student learns from that too, in one of four steps. None: from the ends of the spans alone.
        on_progress: called with (done, total).

    Returns:
        The students that are no worse than they began; `r2_held_out` is of the span's output.

    Raises:
        DataError: too little data to hold any out.
        NonFiniteError: NaN or Inf in the activations of the original.
        SurgeryError: the network has no such blocks.
    """
    if not specs:
        return TrainedStudents([])
    train, held_out = split_held_out(batches)
    doubles = doubles or {}
    first_share = _FIRST_SHARE if doubles else 1.0
    damage = answers if answers is not None and _has_gradient(answers, graph, held_out) else None
    distiller = BlockwiseDistiller(graph, train, held_out, seed, memory, on_progress, damage)
    phase = distiller.train(specs, BudgetShare(budget, 0.0, first_share))
    students = phase.students
    if not students:
        return TrainedStudents([])
    notes = [phase.summary()]
    if answers is not None and damage is None:
        notes.append("students learned from the ends of their spans alone: the damage of answers has no gradient")
    flat = {
        student.spec.span: student for student in students if student.spec.kind == "block" and _flattened_high(student)
    }
    doubled = [doubles[span] for span in flat if span in doubles]
    if doubled:
        second = distiller.train(doubled, BudgetShare(budget, first_share, 1.0))
        better = [student for student in second.students if student.error <= _WINS * flat[student.spec.span].error]
        students = students + better
        notes.append(
            f"one block flattened out above {100 * _HIGH:.0f} % of the variance for {len(doubled)} spans; two blocks "
            f"were tried there{second.groups_note()} and are clearly better for {len(better)}"
        )
    num_diverged = sum(student.diverged for student in students)
    if num_diverged:
        notes.append(f"{num_diverged} students diverged and were stopped; their last good weights are kept")
    return TrainedStudents([student.fitted for student in students], notes)


@dataclass(frozen=True)
class BudgetShare:
    """A part of a budget: from the share `start` of it to the share `stop`."""

    whole: TrainingBudget
    start: float
    stop: float

    @property
    def budget(self) -> TrainingBudget:
        """This part as a budget of its own."""
        return self.whole.part(self.stop - self.start)

    def split(self, groups: Sequence[MemoryBatch]) -> list["BudgetShare"]:
        """One for each group: steps in equal parts, time by size, which makes about as many steps."""
        sizes = [1 if self.whole.steps is not None else group.bytes for group in groups]
        edges = [sum(sizes[:index]) / sum(sizes) for index in range(len(sizes) + 1)]
        shares = [self.start + edge * (self.stop - self.start) for edge in edges]
        return [BudgetShare(self.whole, start, stop) for start, stop in pairwise(shares)]


@dataclass
class TrainingPhase:
    """The students of one part of the budget, how many steps each group took, and how long all of them."""

    memory: float
    students: list[TrainedStudent] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def summary(self) -> str:
        """How many students were trained how long, and how well."""
        errors = sorted(student.error for student in self.students)
        fewest, most = min(self.steps), max(self.steps)
        steps = f"{most} steps" if fewest == most else f"{fewest} to {most} steps"
        each = " each" if len(self.steps) > 1 else ""
        return (
            f"{len(errors)} students learned side by side{self.groups_note()} for {steps}{each} in "
            f"{self.seconds:.0f} s; their held-out error as a share of the variance: median "
            f"{errors[len(errors) // 2]:.3f}"
        )

    def groups_note(self) -> str:
        """Empty where all students fitted into memory."""
        if len(self.steps) < 2:
            return ""
        return (
            f" in {len(self.steps)} portions, one after the other, since memory for them is {self.memory / 1e9:.3g} GB,"
        )


@dataclass
class BlockwiseDistiller:
    """The teacher and the data."""

    graph: BlockGraph
    train_batches: list[Batch]
    held_out: list[Batch]
    seed: int
    memory: float
    on_progress: BudgetProgress | None
    damage: AnswerDamage | None = None

    def train(self, specs: Sequence[StudentSpec], share: BudgetShare) -> TrainingPhase:
        """Train new students, one group after the other; those that learned nothing finite are left out."""
        phase = TrainingPhase(self.memory)
        groups = memory_batches(specs, self.memory)
        for group, part in zip(groups, share.split(groups), strict=True):
            self._train_group(group.members, part, phase)
        return phase

    def _train_group(self, specs: Sequence[StudentSpec], share: BudgetShare, phase: TrainingPhase) -> None:
        """Train some side by side; their optimizers are freed with the end of this function."""
        loop = BlockwiseLoop(self, specs, share)
        loop.evaluate()
        loop.restart()
        loop.run()
        phase.students += [student.result() for student in loop.students if student.curve]
        phase.steps.append(loop.state.step)
        phase.seconds += loop.elapsed

    def order(self) -> Iterator[Batch]:
        """Mini-batch after mini-batch, in a new order each epoch."""
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            for index in torch.randperm(len(self.train_batches), generator=generator).tolist():
                yield self.train_batches[index]

    def record(
        self, batch: Batch, students: Sequence[StudentTrainer], answers: Answers | None = None
    ) -> dict[str, IOPair]:
        """Inputs and output of every span of the students on one mini-batch, by the span's name.

        `answers` keeps what it needs of the same run.
        """
        spans = {student.spec.span.name: student.spec.span for student in students}
        model = self.graph.model
        paths = {span.paths[0] for span in spans.values()} | {span.paths[-1] for span in spans.values()}
        # A cache would be handed to the students too, with the teacher's keys and values in it.
        with evaluating(model), without_kv_cache(model), _recording(model, sorted(paths)) as (inputs, outputs):
            if answers is not None:
                answers.record(batch)
            else:
                call(model, batch)
        for path, value in outputs.items():
            if not bool(torch.isfinite(value).all()):
                raise NonFiniteError(f"NaN or Inf in the activations at '{path}'", "Check weights and data.")
        return {
            name: IOPair(
                *inputs[span.paths[0]], outputs[span.paths[-1]], _counted(batch, span, outputs[span.paths[-1]])
            )
            for name, span in spans.items()
        }


class BlockwiseLoop(BudgetLoop):
    """The training of students side by side."""

    def __init__(self, distiller: BlockwiseDistiller, specs: Sequence[StudentSpec], share: BudgetShare) -> None:
        super().__init__(share.budget, _EVALUATIONS, LoopState())
        self.distiller, self.share = distiller, share
        self.students = [StudentTrainer(spec) for spec in specs]
        self.batches = distiller.order()
        self.answers = Answers(distiller.graph, distiller.damage) if distiller.damage is not None else None

    def restart(self) -> None:
        """Forget the evaluation of the untrained students, which is not part of the budget."""
        self.state, self.started = LoopState(), time.perf_counter()

    def train_step(self) -> int:
        """The teacher runs once, then every student takes a step, and some of them from the answers too."""
        lr = _LR * cosine_lr(self.spent, 1.0, _WARM_UP, floor=_MIN_WARM_UP, delayed=False)
        batch, answers = next(self.batches), self.answers
        pairs = self.distiller.record(batch, self.students, answers)
        for number, student in enumerate(self.students):
            in_turn = answers is not None and answers.is_turn_of(number, self.state.step)
            with self._ready_for_gradients() if in_turn else nullcontext():
                student.step(pairs[student.spec.span.name], lr, answers.loss if answers and in_turn else None)
        return batch.size

    @contextmanager
    def _ready_for_gradients(self) -> Iterator[None]:
        model = self.distiller.graph.model
        with evaluating(model), without_kv_cache(model), torch.enable_grad():
            yield

    def evaluate(self) -> None:
        """Evaluate all students on the samples held out."""
        self.count_evaluation()
        errors, damages = [0.0] * len(self.students), [0.0] * len(self.students)
        model, count = self.distiller.graph.model, 0
        for batch in self.distiller.held_out:
            pairs = self.distiller.record(batch, self.students, self.answers)
            count += batch.size
            with evaluating(model), without_kv_cache(model):
                for index, student in enumerate(self.students):
                    if not student.diverged:
                        errors[index] += batch.size * float(student.loss(pairs[student.spec.span.name]))
                        if self.answers is not None:
                            damages[index] += batch.size * float(self.answers.loss(student))
        for student, error, damage in zip(self.students, errors, damages, strict=True):
            if not student.diverged:
                student.record_evaluation(error / count, damage / count)

    def report_progress(self) -> None:
        """In per cent of the whole budget."""
        if self.distiller.on_progress is not None:
            done = self.share.start + min(1.0, self.spent) * (self.share.stop - self.share.start)
            self.distiller.on_progress(round(100 * done), 100)


@contextmanager
def _recording(
    model: nn.Module, paths: Sequence[str]
) -> Iterator[tuple[dict[str, tuple[tuple[Any, ...], dict[str, Any]]], dict[str, Tensor]]]:
    """The inputs of modules (copied: a block may work in place) and their outputs, by path."""
    inputs: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    outputs: dict[str, Tensor] = {}

    def on_enter(path: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            inputs[path] = copied_arguments((args, kwargs))

        return hook

    def on_leave(path: str) -> Any:
        def hook(_: nn.Module, args: Any, output: Tensor) -> None:
            outputs[path] = output.clone()

        return hook

    with ExitStack() as stack:
        for path in paths:
            module = model.get_submodule(path)
            stack.callback(module.register_forward_pre_hook(on_enter(path), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(on_leave(path)).remove)
        yield inputs, outputs


def _counted(batch: Batch, span: Span, output: Tensor) -> Tensor | None:
    """Which positions of a span's output are not padding; None where all count, or no mask has that shape."""
    if span.layout == "channels_first":
        return None
    counted = batch.counted_in(output)
    # Nothing but padding is nothing to learn from; as if there were no mask, rather than a mean over no number.
    return counted if counted is not None and bool(counted.any()) else None


def _has_gradient(damage: AnswerDamage, graph: BlockGraph, batches: Sequence[Batch]) -> bool:
    """Whether a damage of answers can be learned from: a user's own may count, or leave torch."""
    with evaluating(graph.model):
        original = call(graph.model, batches[0])
        with torch.enable_grad():
            changed = rebuilt(original, _with_gradient)
            return damage(original, changed, batches[0]).requires_grad


def _with_gradient(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.is_floating_point())


def _flattened_high(student: TrainedStudent) -> bool:
    """Whether more steps would win little although the error is still high."""
    curve = student.curve
    return len(curve) > 2 and curve[-1] > max(_HIGH, (1 - _FLAT) * curve[-3])


def split_held_out(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Mini-batches to learn from, and those held out: the last fifth of the samples, as many as an evaluation uses.

    Raises:
        DataError: a single sample.
    """
    num_samples = sum(batch.size for batch in batches)
    if num_samples < 2:
        raise DataError(f"{count_of(num_samples, 'calibration sample')}, expected at least 2", "Some are held out.")
    remaining = min(_MAX_EVALUATED, max(1, round(_HELD_OUT * num_samples)))
    train: list[Batch] = []
    held_out: list[Batch] = []
    for batch in reversed(batches):
        size = min(remaining, batch.size)
        if size:
            held_out.append(batch.rest(batch.size - size))
        if size < batch.size:
            train += _split(batch.take(batch.size - size))[::-1]
        remaining -= size
    return train[::-1], held_out[::-1]


def _split(batch: Batch) -> list[Batch]:
    """Into parts of at most as many samples as a step takes."""
    parts = []
    while batch.size > _MAX_SAMPLES:
        parts.append(batch.take(_MAX_SAMPLES))
        batch = batch.rest(_MAX_SAMPLES)
    return [*parts, batch]
