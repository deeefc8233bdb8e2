"""Refit a cut network from input to output, so that it computes what the original computes at each segment.

Every replacement was fitted to the original's activations, but behind another replacement it sees different inputs. So
both networks walk along the segments side by side: at each, the replacement or the last linear map of a kept segment is
refitted from the student's actual input to the original's sum at that place. Errors do not accumulate, and kept
segments compensate for what a replacement before them could not do. Closed forms, no labels.

Source: sequential layer-wise reconstruction; for channel pruning He et al. 2017, arXiv:1707.06168, Sec. 3.1.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from shoal.batches import Batch, call, first_samples
from shoal.blocks import BlockGraph
from shoal.blocks.interception import intercept_additions
from shoal.errors import NonFiniteError
from shoal.offloaded import is_offloaded
from shoal.plan import Remove, TokenMap
from shoal.preserve import copied_arguments, evaluating, own_
from shoal.regress import fits
from shoal.replace.early_stop import StopForward, run_until_stopped
from shoal.replace.fitting import (
    MAX_UNKNOWNS,
    FittedReplacement,
    ReplacementSpec,
    SpanMoments,
)
from shoal.replace.folded import is_better, solve_update
from shoal.replace.heldout_moments import HeldOutMoments, HeldOutSamples
from shoal.replace.kv_cache import without_kv_cache
from shoal.replace.last_linear import LastLinear, last_linear, network_head
from shoal.replace.output_format import PLAIN, OutputFormat
from shoal.replace.recording import recording
from shoal.replace.row_sampler import ROWS_PER_UNKNOWN, RowSampler, Window
from shoal.replace.segments import Segment, SegmentChain, build_segments

# A refit of a kept layer stands if what it gains on samples held out is this many of its standard errors.
_STANDARD_ERRORS = 2.0
_MIN_SAMPLES = 5

Forward = Callable[[nn.Module, Sequence[Segment], Tensor], Tensor]
SideInputs = dict[str, tuple[tuple[Any, ...], dict[str, Any]]]


@dataclass(frozen=True)
class RefitConfig:
    """How to refit.

    Args:
        kept_segments: whether to refit the kept segments after the first change too, and the linear layer that gives
            the network's answers; never with offloaded weights.
        reach: how many kept segments behind each change are refitted; None: all, and the layer of the answers.
        memory: bytes for the activations of both networks; samples that do not fit are not used.
        seed: of the positions drawn.
    """

    kept_segments: bool = True
    reach: int | None = None
    memory: float = 1e9
    seed: int = 1


def refit_(
    teacher: BlockGraph,
    student: nn.Module,
    replacements: Sequence[FittedReplacement],
    batches: Sequence[Batch],
    *,
    removed: Collection[str] = (),
    config: RefitConfig | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> nn.Module:
    """Refit the replacements of `student` in place, and the last linear maps of the kept segments.

    Args:
        teacher: the original, analysed; it is left as it was.
        student: the cut network; each replacement is at the first path of its span.
        replacements: those in `student`.
        batches: calibration mini-batches; as many are used as fit into memory.
        removed: names of the removed segments.
        config: how to refit.
        on_progress: called with (segments done, segments).

    Raises:
        NonFiniteError: NaN or Inf in the activations.
    """
    config = config or RefitConfig()
    # Offloaded weights are loaded for each call: there is nothing to write to.
    refit_kept = config.kept_segments and not is_offloaded(student)
    chain = build_segments(teacher)
    by_start = {fitted.span.start: fitted for fitted in replacements}
    reach = config.reach if refit_kept else 0
    walk = SequentialRefit(teacher, student, chain, by_start, frozenset(removed), refit_kept, config.seed, reach)
    changes = [*by_start, *(index for index, path in enumerate(chain.paths) if path in walk.changed)]
    if not changes:
        return student
    batches = _fit_to_memory(batches, chain, config.memory)
    bounds = [index for index, contiguous in enumerate(chain.is_contiguous) if not contiguous] + [len(chain.segments)]
    with (
        without_kv_cache(teacher.model),
        without_kv_cache(student),
        evaluating(teacher.model),
        evaluating(student),
        torch.no_grad(),
    ):
        first, end = walk.first_refitted(min(changes)), walk.end(max(changes))
        for start, stop in pairwise(bounds):
            if start < end and first < stop and (refit_kept or any(start <= index < stop for index in changes)):
                walk.run(max(start, first), min(stop, end), batches, on_progress)
        head = network_head(teacher, chain, MAX_UNKNOWNS) if reach is None else None
        if head is not None:
            _refit_head(teacher.model, student, head, batches, config.seed)
    return student


@dataclass
class SequentialRefit:
    """Both networks side by side at one segment: what enters it, for each mini-batch.

    `teacher_x` and `student_x` are the streams; `side_inputs` what blocks take besides (masks, position embeddings).
    """

    teacher: BlockGraph
    student: nn.Module
    chain: SegmentChain
    replacements: dict[int, FittedReplacement]
    removed: frozenset[str]  # of blocks and of single units
    refit_kept: bool
    seed: int
    reach: int | None = None
    teacher_x: list[Tensor] = field(default_factory=list)
    student_x: list[Tensor] = field(default_factory=list)
    side_inputs: list[SideInputs] = field(default_factory=list)
    batches: Sequence[Batch] = ()

    @property
    def changed(self) -> frozenset[str]:
        """The blocks that are removed, whole or in part."""
        return frozenset(Remove.named(name).path for name in self.removed)

    @property
    def partly_removed(self) -> frozenset[str]:
        """The blocks of which single units are removed."""
        return self.changed - self.removed

    def run(
        self, start: int, stop: int, batches: Sequence[Batch], on_progress: Callable[[int, int], None] | None
    ) -> None:
        """Refit the contiguous segments `start` to `stop` - 1."""
        path, calls = self.chain.paths[start], self.teacher.calls
        blocks = [segment.path for segment in self.chain.segments[start:stop] if segment.residual]
        with_side_inputs = [block for block in blocks if len(calls[block].args) > 1 or calls[block].kwargs]
        formats = {segment.path: segment.output_format for segment in self.chain.segments[start:stop]}
        with_formats = {block: formats[block] for block in with_side_inputs}
        self.batches = batches
        self.side_inputs = [_side_inputs(self.teacher.model, with_formats, batch) for batch in batches]
        self.teacher_x = [_input_of(self.teacher.model, path, batch, formats[path]) for batch in batches]
        self.student_x = [_input_of(self.student, path, batch, formats[path]) for batch in batches]
        index = start
        while index < stop:
            index = self._advance(index)
            if on_progress is not None:
                on_progress(index, len(self.chain.segments))
        self.teacher_x, self.student_x, self.side_inputs, self.batches = [], [], [], ()

    def _advance(self, index: int) -> int:
        """Pass one segment or replaced span, refitting it if possible; returns the index of the next segment."""
        fitted = self.replacements.get(index)
        if fitted is not None:
            if fitted.stand_in.keeps_block:
                self._refit_ahead(index, fitted.span.stop)
            elif fitted.stand_in.student:
                self._pass_student(fitted)
            else:
                self._refit_replacement(fitted)
            return fitted.span.stop
        segment = self.chain.segments[index]
        if segment.residual and self.refit_kept and segment.path not in self.changed and self._is_near(index):
            self._refit_inner_units(segment)
        stop = self._gap_end(index) if self.refit_kept and segment.path not in self.removed else index + 1
        if stop > index + 1 or (self.refit_kept and segment.path in self.partly_removed):
            self._refit_ahead(index, stop)
            return stop
        refittable = self.refit_kept and segment.path not in self.changed and self._is_near(index)
        linear = last_linear(self.teacher, segment, MAX_UNKNOWNS) if refittable else None
        if linear is not None:
            self._refit_last_linear(segment, linear)
            return index + 1
        self.teacher_x = [
            self.forward_segments(self.teacher.model, [segment], x, batch) for batch, x in enumerate(self.teacher_x)
        ]
        self.student_x = [
            self.forward_segments(self.student, [segment], x, batch) for batch, x in enumerate(self.student_x)
        ]
        return index + 1

    def first_refitted(self, change: int) -> int:
        """Where to begin, for the first change at this index: in front of removed segments with the one before them."""
        makes_up = self.refit_kept and change > 0 and self._gap_end(change - 1) > change
        return change - 1 if makes_up and change - 1 not in self._covered else change

    def end(self, change: int) -> int:
        """The index after the last segment that may be refitted, the last change being at this index."""
        count, fitted = len(self.chain.segments), self.replacements.get(change)
        stop = fitted.span.stop if fitted is not None else change + 1
        return count if self.reach is None else min(count, stop + self.reach)

    def _is_near(self, index: int) -> bool:
        """Whether a kept segment follows a change closely enough to be refitted."""
        if self.reach is None:
            return True
        before = range(max(0, index - self.reach), index)
        return any(each in self._covered or self.chain.paths[each] in self.changed for each in before)

    @property
    def _covered(self) -> set[int]:
        """The segments that replacements stand for."""
        return {index for fitted in self.replacements.values() for index in range(fitted.span.start, fitted.span.stop)}

    def _gap_end(self, index: int) -> int:
        """The index after the removed segments that follow this one, as far as a layer in it can make up for them."""
        segments, stop = self.chain.segments, index + 1
        while (
            stop < len(segments)
            and segments[stop].path in self.removed
            and self.chain.is_contiguous[stop]
            and _adds_alike(segments[index], segments[stop])
        ):
            stop += 1
        return stop

    def _refit_ahead(self, index: int, stop: int) -> None:
        """Refit the last linear layer left in a segment so that it makes up for units and segments removed behind it.

        Args:
            index: of the segment.
            stop: the index after the last segment that it makes up for; those between have no module any more.
        """
        segments = self.chain.segments[index:stop]
        layer = self._last_layer_left(segments[0])
        update = LayerUpdate(layer, self.student, sum(map(len, self.teacher_x)), self.seed) if layer else None
        for batch, x in enumerate(self.student_x):
            self.teacher_x[batch] = self.forward_segments(self.teacher.model, segments, self.teacher_x[batch], batch)
            if update is not None:
                with update.capturing():
                    output = self.forward_segments(self.student, segments, x, batch)
                update.add(self.teacher_x[batch], output, self.batches[batch].counted_in(output))
        if update is not None:
            update.apply_()
        self.student_x = [
            self.forward_segments(self.student, segments, x, batch) for batch, x in enumerate(self.student_x)
        ]

    def _last_layer_left(self, segment: Segment) -> LastLinear | None:
        """The last linear layer of the last unit of a block that is left, where it ends in one."""
        if not _adds_alike(segment, segment):
            return None
        count = len(self.teacher.chain[segment.path].removable_units)
        lost = [Remove(path=segment.path, unit=unit).name in self.removed for unit in range(count)]
        left = [unit for unit, is_lost in enumerate(lost) if not is_lost]
        unit = left[-1] if any(lost) else None
        linear = last_linear(self.teacher, segment, MAX_UNKNOWNS, unit)
        if linear is None or not linear.is_added_as_it_is:
            return None
        token_map = self._token_map(segment)
        if token_map is not None and linear.layer.startswith(f"{token_map.module}."):
            return LastLinear(f"{token_map.module}.linear_attn", None, biased=False)
        return linear if isinstance(self.student.get_submodule(linear.layer), nn.Linear) else None

    def _token_map(self, segment: Segment) -> TokenMap | None:
        """The map that took the place of a block's attention, if one did."""
        fitted = self.replacements.get(self.chain.paths.index(segment.path))
        return fitted.stand_in.attention if fitted is not None else None

    def _refit_replacement(self, fitted: FittedReplacement) -> None:
        spec = ReplacementSpec(fitted.span, fitted.kind, fitted.stand_in.shortcut)
        moments = SpanMoments(spec.key, [spec], sum(len(x) for x in self.teacher_x), self.seed)
        segments = self.chain.segments[fitted.span.start : fitted.span.stop]
        with recording(self.teacher, [fitted.span.end]) as record:
            for batch, x in enumerate(self.student_x):
                self.teacher_x[batch] = self.forward_segments(
                    self.teacher.model, segments, self.teacher_x[batch], batch
                )
                moments.add(x, [record.target(fitted.span.end)], self.batches[batch].counted_in(x))
        module = self.student.get_submodule(fitted.span.paths[0])
        if any(True for _ in module.parameters()):
            [refitted] = moments.solve_all(next(module.parameters()))
            own_(module).load_state_dict(refitted.module.state_dict())
        self.student_x = [segments[0].output_format.stream(module(x)) for x in self.student_x]

    def _pass_student(self, fitted: FittedReplacement) -> None:
        """Run a student without refitting it: it has no closed form."""
        segments = self.chain.segments[fitted.span.start : fitted.span.stop]
        module = self.student.get_submodule(fitted.span.paths[0])
        for batch, x in enumerate(self.student_x):
            args, kwargs = copied_arguments(self.side_inputs[batch].get(segments[0].path, ((), {})))
            self.teacher_x[batch] = self.forward_segments(self.teacher.model, segments, self.teacher_x[batch], batch)
            self.student_x[batch] = module(x.clone(), *args, **kwargs)

    def _refit_inner_units(self, segment: Segment) -> None:
        """Refit the last linear maps of the units of a kept segment before its last, each to what is missing there."""
        block = self.teacher.chain[segment.path]
        for unit in range(0 if block.parallel else len(block.units) - 1):
            linear = last_linear(self.teacher, segment, MAX_UNKNOWNS, unit)
            if linear is None or not linear.is_added_as_it_is:
                continue
            probe, sums = SegmentProbe(self.teacher, self.student, segment, linear), list[UnitSum]()
            for batch, x in enumerate(self.student_x):
                forward = partial(self.forward_segments, batch=batch)
                target = probe.unit_sum(self.teacher_x[batch], forward, unit)
                parts = probe.unit_parts(x, forward, unit)
                sums.append(UnitSum(target, *parts, self.batches[batch].counted_in(target)))
            self._fitted_sums(linear, sums)

    def _refit_last_linear(self, segment: Segment, linear: LastLinear) -> None:
        """Refit the last linear map of a kept segment to what is missing at its sum, and pass the segment.

        Where the sum is what leaves the segment, it is made of what was captured: the rest need not run again.
        """
        adds_up = linear.is_added_as_it_is and _adds_alike(segment, segment)
        sums: list[UnitSum] = []
        moments = self._layer_moments(linear)
        probe = SegmentProbe(self.teacher, self.student, segment, linear)
        for batch, x in enumerate(self.student_x):
            forward = partial(self.forward_segments, batch=batch)
            self.teacher_x[batch], target = probe.teacher_sum(self.teacher_x[batch], forward)
            features, stream = probe.student_parts(x.clone(), forward)
            if adds_up and stream is not None:
                sums.append(UnitSum(target, features, stream, self.batches[batch].counted_in(target)))
            else:
                missing = linear.as_output(target if stream is None else target - stream)
                moments.add(features, [missing], self.batches[batch].counted_in(features))
        if sums:
            self.student_x = self._fitted_sums(linear, sums)
            return
        linear_fit_(self.student, linear, moments)
        self.student_x = [
            self.forward_segments(self.student, [segment], x, batch) for batch, x in enumerate(self.student_x)
        ]

    def _fitted_sums(self, linear: LastLinear, sums: Sequence["UnitSum"]) -> list[Tensor]:
        """Refit a layer whose output is added as it is, if that improves the sums; returns these, by mini-batch."""
        moments = self._layer_moments(linear)
        for each in sums:
            moments.add(each.features, [each.target - each.stream], each.counted)
        layer = self.student.get_submodule(linear.layer)
        before = [each.stream + layer(each.features) for each in sums]
        weights = [(parameter, parameter.data) for parameter in layer.parameters()]
        linear_fit_(self.student, linear, moments)
        after = [each.stream + layer(each.features) for each in sums]
        counted = ([each.of_note(x) for each, x in zip(sums, part, strict=True)] for part in (before, after))
        if improves([each.target for each in sums], *counted):
            return after
        for parameter, values in weights:  # those set since lie elsewhere
            parameter.data = values
        return before

    def _layer_moments(self, linear: LastLinear) -> "LayerMoments":
        return LayerMoments(self.student.get_submodule(linear.layer), sum(map(len, self.teacher_x)), self.seed)

    def forward_segments(self, model: nn.Module, segments: Sequence[Segment], x: Tensor, batch: int) -> Tensor:
        """The stream after these segments, for the mini-batch of this index."""
        for segment in segments:
            # A copy of all: what a block writes into must not change what the next fit reads.
            args, kwargs = copied_arguments(self.side_inputs[batch].get(segment.path, ((), {})))
            for path in segment.paths:
                x = segment.output_format.run(model.get_submodule(path), x.clone(), args, kwargs)
        return x


@dataclass(frozen=True, eq=False)
class UnitSum:
    """A unit of the student on a mini-batch: what enters its last linear map, and what is that map's output added to.

    `target` is the sum of both in the original; `counted` are the positions that are no padding, where there is any.
    """

    target: Tensor
    features: Tensor
    stream: Tensor
    counted: Tensor | None = None

    def of_note(self, x: Tensor) -> Tensor:
        """A sum, at positions of padding as it should be: it makes no error there."""
        return x if self.counted is None else torch.where(self.counted.unsqueeze(-1), x, self.target)


@dataclass
class SegmentProbe:
    """Reads what a refit needs of one kept segment, in both networks."""

    teacher: BlockGraph
    student: nn.Module
    segment: Segment
    linear: LastLinear

    def teacher_sum(self, x: Tensor, forward: Forward) -> tuple[Tensor, Tensor]:
        """The output of the segment in the original, and its sum before the tail."""
        with recording(self.teacher, [self.segment.path]) as record:
            output = forward(self.teacher.model, [self.segment], x)
        return output, record.sums[self.segment.path]

    def unit_sum(self, x: Tensor, forward: Forward, unit: int) -> Tensor:
        """The stream behind a unit in the original."""
        [(stream, branch)] = self._at_unit(self.teacher.model, x, forward, unit)
        return stream + branch

    def unit_parts(self, x: Tensor, forward: Forward, unit: int) -> tuple[Tensor, Tensor]:
        """The input of the last linear map of a unit in the student, and the stream that its output is added to."""
        with self._listening() as features:
            [(stream, _)] = self._at_unit(self.student, x, forward, unit)
        return features[-1], stream

    def student_parts(self, x: Tensor, forward: Forward) -> tuple[Tensor, Tensor | None]:
        """The same of the last unit of a residual block; of any other segment there is no stream."""
        if self.segment.residual:
            return self.unit_parts(x, forward, len(self.teacher.chain[self.segment.path].units) - 1)
        with self._listening() as features:
            forward(self.student, [self.segment], x)
        return features[-1], None

    @contextmanager
    def _listening(self) -> Iterator[list[Tensor]]:
        """Inside the context what enters the layer of the student is kept."""
        features: list[Tensor] = []
        layer = self.student.get_submodule(self.linear.layer)
        handle = layer.register_forward_pre_hook(lambda _, args: features.append(args[0].clone()))
        try:
            yield features
        finally:
            handle.remove()

    def _at_unit(self, model: nn.Module, x: Tensor, forward: Forward, unit: int) -> list[tuple[Tensor, Tensor]]:
        """Run a segment up to the addition of a unit; returns the stream and the branch there."""
        seen: list[tuple[Tensor, Tensor]] = []

        def capture(path: str, number: int, stream: Tensor, branch: Tensor) -> None:
            if number == unit:
                seen.append((stream.clone(), branch.clone()))
                raise StopForward

        with suppress(StopForward), intercept_additions(model, [self.teacher.chain[self.segment.path]], capture):
            forward(model, [self.segment], x)
        return seen


class LayerUpdate:
    """What a linear layer of the cut network should add, so that the stream behind it becomes that of the original.

    Its output is added to the stream, and nothing is done to that before it leaves the segment: what is missing in the
    stream is what the layer has to add.
    """

    def __init__(self, linear: LastLinear, student: nn.Module, samples: int, seed: int) -> None:
        self.linear, self.layer = linear, student.get_submodule(linear.layer)
        self.moments = LayerMoments(self.layer, samples, seed)
        self.features: list[Tensor] = []

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Inside the context the input of the layer is kept."""
        self.features.clear()
        handle = self.layer.register_forward_pre_hook(lambda _, args: self.features.append(args[0].clone()))
        try:
            yield
        finally:
            handle.remove()

    def add(self, target: Tensor, output: Tensor, counted: Tensor | None = None) -> None:
        """Add one mini-batch: the stream as it should be and as it is; a fifth is held out, padding left out."""
        [features] = self.features
        self.moments.add(features, [target - output], counted)

    def apply_(self) -> None:
        """Change the layer, if that does better on what was held out."""
        train, held_out = self.moments.given_up(biased=self.linear.biased)
        if train.n == 0 or held_out.n == 0:
            return
        layer: Any = self.layer
        [update] = solve_update(train, held_out, layer.weight.detach().double())
        nothing = torch.zeros_like(update.weight), torch.zeros_like(update.bias)
        if not is_better(held_out, (update.weight, update.bias), nothing):
            return
        layer.weight.data = layer.weight.data + update.weight.to(layer.weight)
        if self.linear.biased:
            layer.bias.data = layer.bias.data + update.bias.to(layer.bias)


def improves(target: Sequence[Tensor], before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    """Whether the streams of the samples held out come nearer to those they should be, beyond chance.

    Tokens of one text are alike: what they gain together is one observation, so the mean gain of a sample is compared
    with its standard error over the samples. Errors are shares of what the streams are, as what reads these divides by
    it: the first token of a text, often a hundred times the size of the others, counts like them.

    Args:
        target: by mini-batch, (samples, tokens, ..., channels).
        before: without a refit.
        after: with it.
    """
    gains, parts = list[Tensor](), HeldOutSamples()
    for stream, first, second in zip(target, before, after, strict=True):
        held, _ = parts.split(len(stream))
        if held.start == held.stop:
            continue
        size = stream[held].double().square().mean(-1).clamp_min(torch.finfo(torch.float32).tiny)
        errors = [(part[held].double() - stream[held]).square().mean(-1) / size for part in (first, second)]
        gains.append((errors[0] - errors[1]).reshape(len(errors[0]), -1).mean(1))
    gain = torch.cat(gains)
    if len(gain) < _MIN_SAMPLES:  # too few to tell: the sum of squares has decided
        return True
    return float(gain.mean()) > _STANDARD_ERRORS * float(gain.std()) / math.sqrt(len(gain))


def _adds_alike(segment: Segment, other: Segment) -> bool:
    """Whether what a branch of `segment` adds is what leaves `other`, where nothing else is left in between."""
    plain = all(each.residual and each.tail == "identity" and not each.replaces_output for each in (segment, other))
    return plain and segment.out_shape == other.out_shape == other.in_shape and len(segment.out_shape) < 3


class LayerMoments(HeldOutMoments):
    """Moments of the input of a layer and the output it should have, at some positions."""

    def __init__(self, layer: Any, samples: int, seed: int, rows_per_unknown: float = ROWS_PER_UNKNOWN) -> None:
        window = None
        if isinstance(layer, nn.Conv2d):
            window = Window(layer.kernel_size[0], int(layer.stride[0]), int(layer.dilation[0]))
        outputs, unknowns = len(layer.weight), layer.weight[0].numel()
        sampler = RowSampler(unknowns, samples, window, rows_per_unknown, seed)
        super().__init__(sampler, unknowns, outputs, "of the cut network")

    def add(self, x: Tensor, ys: Sequence[Tensor], counted: Tensor | None = None) -> None:
        """Add one mini-batch; NaN and Inf are refused at positions that are not drawn, too."""
        if not all(bool(torch.isfinite(each).all()) for each in (x, *ys)):
            raise NonFiniteError(f"NaN or Inf in the activations {self.place}", "Check weights and data.")
        super().add(x, ys, counted)


def _refit_head(teacher: nn.Module, student: nn.Module, head: LastLinear, batches: Sequence[Batch], seed: int) -> None:
    """Refit the layer that gives the network's answers to those of the original."""
    moments = LayerMoments(student.get_submodule(head.layer), sum(batch.size for batch in batches), seed)
    for batch in batches:
        x = _input_of(student, head.layer, batch)
        moments.add(x, [_output_of(teacher, head.layer, batch)], batch.counted_in(x))
    linear_fit_(student, head, moments)


def linear_fit_(student: nn.Module, linear: LastLinear, moments: LayerMoments) -> None:
    """Set a map to the ridge regression on moments of its inputs and targets, shrinking towards what it is."""
    weight = linear.fused_weight(student)
    train, held_out = moments.given_up(biased=linear.biased)
    fit = fits(train, held_out, [slice(0, len(weight))], target=weight)[0]
    if is_better(held_out, (fit.weight, fit.bias), (weight, linear.fused_bias(student))):
        linear.set_fused_(student, fit.weight, fit.bias)


def _side_inputs(model: nn.Module, formats: Mapping[str, OutputFormat], batch: Batch) -> SideInputs:
    """What blocks of the original take besides the stream (masks, position embeddings), as copies."""
    inputs: SideInputs = {}
    if not formats:
        return inputs

    def hook(path: str) -> Any:
        def record(_: nn.Module, args: Any, kwargs: Any) -> None:
            args, kwargs = formats[path].stream_first(args, kwargs)
            inputs[path] = copied_arguments((args[1:], kwargs))
            if len(inputs) == len(formats):
                raise StopForward  # the head of a language model may cost as much as many blocks

        return record

    with ExitStack() as stack:
        for path in formats:
            handle = model.get_submodule(path).register_forward_pre_hook(hook(path), with_kwargs=True)
            stack.callback(handle.remove)
        run_until_stopped(model, batch)
    return inputs


def _input_of(model: nn.Module, path: str, batch: Batch, form: OutputFormat = PLAIN) -> Tensor:
    """The input of the module at `path` when the network runs."""
    captured: list[Tensor] = []

    def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
        captured.append(form.stream_first(args, kwargs)[0][0].clone())
        raise StopForward

    # In front of the module's own hooks: a replacement may have one that moves the stream.
    handle = model.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
    try:
        run_until_stopped(model, batch)
    finally:
        handle.remove()
    return captured[0]


def _output_of(model: nn.Module, path: str, batch: Batch) -> Tensor:
    """The output of the module at `path` when the network runs."""
    captured: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_hook(lambda _, args, output: captured.append(output.clone()))
    try:
        call(model, batch)
    finally:
        handle.remove()
    return captured[0]


def _fit_to_memory(batches: Sequence[Batch], chain: SegmentChain, memory: float) -> list[Batch]:
    """As many samples as fit into `memory`, at least two, in their mini-batches."""
    shapes = (shape for segment in chain.segments for shape in (segment.in_shape, segment.out_shape))
    largest = max((torch.Size(shape).numel() for shape in shapes), default=1)
    max_samples = max(2, int(memory / (2 * 4 * largest)))
    return list(first_samples(batches, max_samples))
