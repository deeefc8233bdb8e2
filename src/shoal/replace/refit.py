"""Refit a cut network from input to output: what it computes is brought back to what the original computes there.

Every stand-in was fitted on the original's activations, but behind another stand-in it meets others. So the line is
walked once, both networks side by side: at each step the stand-in, or the last map of a kept step, is fitted anew from
what really enters it to the original's sum at that place. Errors do not pile up, and what a stand-in could not do the
kept steps behind it make good as far as they can. Closed forms, no labels.

Source: sequential layer-wise reconstruction; for channel pruning He et al. 2017, arXiv:1707.06168, Sec. 3.1.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from shoal.batches import Batch, call
from shoal.blocks import BlockGraph
from shoal.blocks.interception import intercept_additions
from shoal.errors import ModelRaisedError, NonFiniteError
from shoal.offloaded import is_offloaded
from shoal.preserve import evaluating
from shoal.regress import Moments, fits
from shoal.replace.fitting import (
    MOST_UNKNOWNS,
    ROWS_PER_UNKNOWN,
    FittedReplacement,
    ReplacementSpec,
    SpanMoments,
    fit_heldout_slices,
)
from shoal.replace.kv_cache import without_kv_cache
from shoal.replace.last_linear import LastLinear, last_linear
from shoal.replace.neighbourhoods import patches, picked, positions_of
from shoal.replace.recording import recording
from shoal.replace.segments import Segment, SegmentChain, build_segments

# Activations of both networks are held for so many bytes; more samples than fit are not used.
_MEMORY = 1e9

Tick = Callable[[int, int], None]
Others = dict[str, tuple[tuple[Any, ...], dict[str, Any]]]


def refit_(
    teacher: BlockGraph,
    student: nn.Module,
    stand_ins: Sequence[FittedReplacement],
    batches: Sequence[Batch],
    *,
    removed: Collection[str] = (),
    kept: bool = True,
    memory: float = _MEMORY,
    seed: int = 1,
    tick: Tick | None = None,
) -> nn.Module:
    """Fit the stand-ins of `student` again, in place, and (with `kept`) the last maps of the steps that were kept.

    Args:
        teacher: the original, dissected; it is left as it was.
        student: the cut network; each stand-in is at the first path of its span.
        stand_ins: those that stand in `student`.
        batches: calibration mini-batches; as many are used as fit into `memory`.
        removed: names of the steps that are gone.
        kept: whether kept steps behind the first change are fitted too; never where weights are on a disk.
        memory: bytes for the activations of both networks.
        seed: of the positions drawn.
        tick: called with (steps done, steps).

    Raises:
        NonFiniteError: NaN or Inf in the activations.
    """
    kept = kept and not is_offloaded(student)  # what is read anew at each call cannot be written to
    line = build_segments(teacher)
    walk = _Walk(teacher, student, line, {one.span.start: one for one in stand_ins}, frozenset(removed), kept, seed)
    changes = [*walk.stand_ins, *(number for number, path in enumerate(line.paths) if path in walk.removed)]
    if not changes:
        return student
    chosen = _affordable(batches, line, memory)
    bounds = [number for number, follows in enumerate(line.follows) if not follows] + [len(line.steps)]
    with (
        without_kv_cache(teacher.model),
        without_kv_cache(student),
        evaluating(teacher.model),
        evaluating(student),
        torch.no_grad(),
    ):
        for start, stop in pairwise(bounds):
            first = min(changes)
            if first < stop and (kept or any(start <= one < stop for one in changes)):
                walk.section(max(start, first), stop, chosen, tick)
    return student


@dataclass
class _Walk:
    """Both networks on their way through the line."""

    teacher: BlockGraph
    student: nn.Module
    line: SegmentChain
    stand_ins: dict[int, FittedReplacement]
    removed: frozenset[str]
    kept: bool
    seed: int
    left: list[Tensor] = field(default_factory=list)
    right: list[Tensor] = field(default_factory=list)
    others: list[Others] = field(default_factory=list)

    def section(self, start: int, stop: int, batches: Sequence[Batch], tick: Tick | None) -> None:
        """From step `start` to `stop`, which follow each other directly."""
        path = self.line.paths[start]
        calls = self.teacher.calls
        steps = [step.path for step in self.line.steps[start:stop] if step.residual]
        asked = [path for path in steps if len(calls[path].args) > 1 or calls[path].kwargs]
        self.others = [_others(self.teacher.model, asked, batch) for batch in batches]
        self.left = [_entering(self.teacher.model, path, batch) for batch in batches]
        self.right = [_entering(self.student, path, batch) for batch in batches]
        number = start
        while number < stop:
            number = self._step(number)
            if tick is not None:
                tick(number, len(self.line.steps))
        self.left, self.right, self.others = [], [], []

    def _step(self, number: int) -> int:
        """Take one step, fitting what is to be fitted; returns the number of the next."""
        one = self.stand_ins.get(number)
        if one is not None:
            return self._stand_in(one)
        step = self.line.steps[number]
        found = last_linear(self.teacher, step, MOST_UNKNOWNS) if self.kept and step.path not in self.removed else None
        if found is not None:
            self._map(step, found)
        else:
            self.left = [self._through(self.teacher.model, [step], x, place) for place, x in enumerate(self.left)]
        self.right = [self._through(self.student, [step], x, place) for place, x in enumerate(self.right)]
        return number + 1

    def _stand_in(self, one: FittedReplacement) -> int:
        if one.stand_in.student:
            return self._student(one)
        wanted = ReplacementSpec(one.span, one.kind, one.stand_in.shortcut)
        sums = SpanMoments(wanted.key, [wanted], sum(len(x) for x in self.left), self.seed)
        steps = self.line.steps[one.span.start : one.span.stop]
        with recording(self.teacher, [one.span.end]) as seen:
            for place, entering in enumerate(self.right):
                self.left[place] = self._through(self.teacher.model, steps, self.left[place], place)
                if len(entering) > 1:
                    sums.add(entering, [seen.target(one.span.end)])
        module = self.student.get_submodule(one.span.paths[0])
        if any(True for _ in module.parameters()):
            module.load_state_dict(sums.solved(next(module.parameters()))[0].module.state_dict())
        self.right = [steps[0].form.stream(module(x)) for x in self.right]
        return one.span.stop

    def _student(self, one: FittedReplacement) -> int:
        """Past a student as it is: it has no closed form."""
        steps = self.line.steps[one.span.start : one.span.stop]
        module = self.student.get_submodule(one.span.paths[0])
        for place, entering in enumerate(self.right):
            others, named = self.others[place].get(steps[0].path, ((), {}))
            self.left[place] = self._through(self.teacher.model, steps, self.left[place], place)
            self.right[place] = module(entering.clone(), *others, **named)
        return one.span.stop

    def _map(self, step: Segment, found: LastLinear) -> None:
        """Fit the last map of a kept step to what is missing at its sum."""
        layer: Any = self.student.get_submodule(found.layer)
        rows = _Rows(layer, sum(len(x) for x in self.left), self.seed)
        watch = _Watch(self.teacher, self.student, step, found)
        for place, entering in enumerate(self.right):
            through = partial(self._through, place=place)
            self.left[place], wanted = watch.teacher_sum(self.left[place], through)
            features, stream = watch.student_parts(entering.clone(), through)
            if len(entering) > 1:
                rows.add(features, wanted if stream is None else wanted - stream)
        target = found.effective(self.student)
        train, held_out = rows.train, rows.held_out
        if not found.biased:
            train, held_out = train.about_zero(), held_out.about_zero()
        fit = fits(train, held_out, [slice(0, len(target))], target=target)[0]
        found.write_(self.student, fit.weight, fit.bias)

    def _through(self, model: nn.Module, steps: Sequence[Segment], x: Tensor, place: int) -> Tensor:
        for step in steps:
            others, named = self.others[place].get(step.path, ((), {}))
            for path in step.paths:
                # A copy: a block that works in place must not change what the next fit reads.
                x = step.form.stream(model.get_submodule(path)(x.clone(), *others, **named))
        return x


@dataclass
class _Watch:
    """Looks at one kept step in both networks."""

    teacher: BlockGraph
    student: nn.Module
    step: Segment
    found: LastLinear

    def teacher_sum(self, x: Tensor, through: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        """What leaves the step in the original, and its sum before the tail."""
        with recording(self.teacher, [self.step.path]) as seen:
            leaving = through(self.teacher.model, [self.step], x)
        return leaving, seen.sums[self.step.path]

    def student_parts(self, x: Tensor, through: Callable[..., Tensor]) -> tuple[Tensor, Tensor | None]:
        """What enters the last map in the student, and the stream that its result is added to."""
        caught: dict[str, Tensor] = {}
        handle = self.student.get_submodule(self.found.layer).register_forward_pre_hook(
            lambda _, args: caught.__setitem__("features", args[0].clone())
        )
        try:
            if not self.step.residual:
                through(self.student, [self.step], x)
                return caught["features"], None
            block = self.teacher.chain[self.step.path]

            def look(path: str, unit: int, stream: Tensor, branch: Tensor) -> None:
                if unit == len(block.units) - 1:
                    caught["stream"] = stream.clone()

            with intercept_additions(self.student, [block], look):
                through(self.student, [self.step], x)
            return caught["features"], caught["stream"]
        finally:
            handle.remove()


class _Rows:
    """Moments of what enters a layer against what it should return, at some positions."""

    def __init__(self, layer: Any, samples: int, seed: int) -> None:
        self.kernel = layer.kernel_size[0] if isinstance(layer, nn.Conv2d) else 1
        self.stride = layer.stride[0] if isinstance(layer, nn.Conv2d) else 1
        self.dilation = layer.dilation[0] if isinstance(layer, nn.Conv2d) else 1
        self.images = isinstance(layer, nn.Conv2d)
        outputs, unknowns = len(layer.weight), layer.weight[0].numel()
        self.most = max(8, -(-ROWS_PER_UNKNOWN * unknowns // max(samples, 1)))
        self.train, self.held_out = (Moments(unknowns, outputs, joint=False) for _ in range(2))
        self.generator = torch.Generator().manual_seed(seed)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in one mini-batch; a fifth is held out."""
        if not bool(torch.isfinite(x).all() and torch.isfinite(y).all()):
            raise NonFiniteError("NaN or Inf in the activations of the cut network", "Check weights and data.")
        for moments, part in fit_heldout_slices(self.train, self.held_out, x.shape[0]):
            moments.add(*self._rows(x[part], y[part]))

    def _rows(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if not self.images:
            flat = x.reshape(-1, x.shape[-1])
            keep = torch.randperm(len(flat), generator=self.generator)[: self.most * len(x)].to(x.device)
            return flat[keep].double(), y.reshape(-1, y.shape[-1])[keep].double()
        positions = positions_of(y.shape[2:], self.most, self.generator)
        rows = patches(x, positions, kernel=self.kernel, stride=self.stride, dilation=self.dilation)
        return rows.double(), picked(y, positions).double()


class _Reached(Exception):  # noqa: N818 - no error: the step was reached, the rest of the forward is not needed
    """Carries nothing."""


def _others(model: nn.Module, paths: Sequence[str], batch: Batch) -> Others:
    """What blocks of the original are given beside the stream: masks, position embeddings; held by reference."""
    found: Others = {}
    if not paths:
        return found

    def hook(path: str) -> Any:
        return lambda _, args, kwargs: found.__setitem__(path, (args[1:], kwargs))

    with ExitStack() as stack:
        for path in paths:
            handle = model.get_submodule(path).register_forward_pre_hook(hook(path), with_kwargs=True)
            stack.callback(handle.remove)
        call(model, batch)
    return found


def _entering(model: nn.Module, path: str, batch: Batch) -> Tensor:
    """What enters the module at `path` when the network runs."""
    caught: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        caught.append(args[0].clone())
        raise _Reached

    handle = model.get_submodule(path).register_forward_pre_hook(hook)
    try:
        call(model, batch)
    except ModelRaisedError:
        if not caught:  # its own error, before it came so far
            raise
    finally:
        handle.remove()
    return caught[0]


def _affordable(batches: Sequence[Batch], line: SegmentChain, memory: float) -> list[Batch]:
    """As many mini-batches as fit into `memory`, at least one; those too small to hold a sample out are left out."""
    largest = max(
        (torch.Size(shape).numel() for step in line.steps for shape in (step.in_shape, step.out_shape)), default=1
    )
    most = max(2, int(memory / (2 * 4 * largest)))
    found, count = [], 0
    for batch in batches:
        if count >= most:
            break
        found.append(batch.take(most - count) if count + batch.size > most else batch)
        count += batch.size
    return [batch for batch in found if batch.size > 1] or found[:1]
