"""Spans: consecutive steps that one stand-in may take the place of, and what it has to compute.

A stand-in maps what enters the first step to the sum of the last one's addition (of a plain layer: to what its
activation reads); what follows it, the *tail*, stays behind it. Where something follows that is no activation, it maps
to all that leaves the last step. No span crosses a tap: what is inside it is read
nowhere else.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import Literal

from torch import nn

from shoal.batches import Batch, call
from shoal.blocks import BlockGraph
from shoal.blocks.input_variants import resized
from shoal.errors import ModelRaisedError
from shoal.offloaded import is_offloaded
from shoal.plan import Tail
from shoal.preserve import evaluating
from shoal.replace.output_format import OutputFormat
from shoal.replace.segments import Segment, SegmentChain

Layout = Literal["channels_first", "channels_last"]


@dataclass(frozen=True)
class Span:
    """Steps `start` to `stop` - 1 of the line, one after the other.

    Args:
        start: index of the first step in the line.
        stop: one behind the last.
        paths: the modules it covers; the stand-in goes to the first.
        layout: channels_first for images (C, H, W), channels_last for tokens (T, C) and plain features (C).
        in_shape: of one sample entering.
        out_shape: of one sample leaving.
        stride: of the whole span, the same in both directions; 1 where there are no positions.
        tail: what follows the sum.
        end: the name of the last step.
        dilation: of the span's own k x k convolutions, the largest.
        residual: whether it is made of residual blocks.
        forms: in which each of `paths` gives the stream back.
    """

    start: int
    stop: int
    paths: tuple[str, ...]
    layout: Layout
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    stride: int
    tail: Tail
    end: str
    dilation: int = 1
    residual: bool = True
    forms: tuple[OutputFormat, ...] = ()

    @property
    def in_channels(self) -> int:
        """Channels entering."""
        return self.in_shape[0] if self.layout == "channels_first" else self.in_shape[-1]

    @property
    def out_channels(self) -> int:
        """Channels leaving."""
        return self.out_shape[0] if self.layout == "channels_first" else self.out_shape[-1]

    @property
    def keeps_shape(self) -> bool:
        """Whether the same shape leaves as enters."""
        return self.in_shape == self.out_shape

    @property
    def name(self) -> str:
        """From the first module to the last step."""
        return f"{self.paths[0]}..{self.end}"


def spans_of(anatomy: BlockGraph, line: SegmentChain, longest: int) -> list[Span]:
    """Every span of up to `longest` steps that a stand-in can be fitted for."""
    found = []
    varying = _varying_strides(anatomy, line)
    for start in range(len(line.steps)):
        for stop in range(start + 1, min(start + longest, len(line.steps)) + 1):
            if not all(line.follows[start + 1 : stop]) or line.steps[stop - 1].path in varying:
                break
            span = _span(anatomy, line, start, stop)
            if span is not None:
                found.append(span)
    return found


def _span(anatomy: BlockGraph, line: SegmentChain, start: int, stop: int) -> Span | None:
    steps = line.steps[start:stop]
    first, last = steps[0], steps[-1]
    layout = _layout(anatomy.model, first)
    if layout is None or len(first.in_shape) != len(last.out_shape):
        return None
    if not (first.ends and last.ends):
        return None
    # Step by step: 9 positions to 5 to 3 is a stride of 4, though 3 would do for 9 to 3.
    strides = [_stride(step.in_shape, step.out_shape, layout) for step in steps]
    known = [one for one in strides if one is not None]
    if len(known) < len(strides):
        return None
    return Span(
        start,
        stop,
        tuple(path for step in steps for path in step.paths),
        layout,
        first.in_shape,
        last.out_shape,
        prod(known),
        last.tail,
        last.path,
        _dilation(anatomy.model, steps),
        first.residual,
        tuple(step.form for step in steps for _ in step.paths),
    )


def _varying_strides(anatomy: BlockGraph, line: SegmentChain) -> set[str]:
    """The steps that change the size of other inputs in another way than that of the traced one.

    An adaptive pooling to 4 x 4 halves 8 x 8, but no map of this stride can stand in for it.
    """
    if anatomy.example is None or is_offloaded(anatomy.model):  # each run of an offloaded network reads the disk
        return set()
    strides = {}
    for step in line.steps:
        layout = _layout(anatomy.model, step)
        stride = _stride(step.in_shape, step.out_shape, layout) if layout is not None else None
        if layout is not None and stride is not None:
            strides[step.path] = (layout, stride)
    varying: set[str] = set()
    for group in resized(anatomy.example):
        shapes = next((shapes for batch in group if (shapes := _shapes_of_steps(anatomy.model, line, batch))), {})
        for path, (entering, leaving) in shapes.items():
            if path in strides and not _follows_stride(entering, leaving, *strides[path]):
                varying.add(path)
    return varying


_Shape = tuple[int, ...]


def _shapes_of_steps(model: nn.Module, line: SegmentChain, batch: Batch) -> dict[str, tuple[_Shape, _Shape]]:
    """What enters and leaves every step on this input, of one sample; nothing where the network does not take it."""
    entering: dict[str, _Shape] = {}
    leaving: dict[str, _Shape] = {}

    def enter(path: str) -> Callable[..., None]:
        return lambda module, args: entering.__setitem__(path, tuple(args[0].shape[1:]))

    def leave(step: Segment) -> Callable[..., None]:
        return lambda module, args, out: leaving.__setitem__(step.path, tuple(step.form.stream(out).shape[1:]))

    with ExitStack() as stack, evaluating(model):
        for step in line.steps:
            first, last = (model.get_submodule(path) for path in (step.paths[0], step.paths[-1]))
            stack.callback(first.register_forward_pre_hook(enter(step.path)).remove)
            stack.callback(last.register_forward_hook(leave(step)).remove)
        try:
            call(model, batch)
        except ModelRaisedError:
            return {}
    return {path: (shape, leaving[path]) for path, shape in entering.items() if path in leaving}


def _follows_stride(entering: _Shape, leaving: _Shape, layout: Layout, stride: int) -> bool:
    if layout == "channels_last":
        return entering[:-1] == leaving[:-1]
    return all(-(-before // stride) == after for before, after in zip(entering[1:], leaving[1:], strict=True))


def _layout(model: nn.Module, step: Segment) -> Layout | None:
    """Where the channels are: told by the convolutions of the step that take what enters it; None where unknown."""
    modules = [one for path in step.paths for one in model.get_submodule(path).modules()]
    shape = step.in_shape
    first = shape[0]
    if len(shape) == 3 and any(isinstance(one, nn.Conv2d) and one.in_channels == first for one in modules):
        return "channels_first"
    others = [one for one in modules if isinstance(one, nn.Conv1d | nn.Conv3d)]
    # A signal (C, T) or a volume (C, D, H, W): no stand-in is made for these.
    if len(shape) > 1 and any(one.in_channels == first for one in others):
        return None
    return "channels_last"


def _dilation(model: nn.Module, steps: tuple[Segment, ...]) -> int:
    found = [
        max(one.dilation)
        for step in steps
        for path in step.paths
        for one in model.get_submodule(path).modules()
        if isinstance(one, nn.Conv2d) and max(one.kernel_size) > 1
    ]
    return int(max(found, default=1))


def _stride(in_shape: tuple[int, ...], out_shape: tuple[int, ...], layout: Layout) -> int | None:
    """The stride of a step, the same in both directions; None where there is none."""
    if layout == "channels_last":
        return 1 if in_shape[:-1] == out_shape[:-1] else None
    if len(in_shape) != 3 or len(out_shape) != 3:
        return None
    ratios = {-(-before // after) for before, after in zip(in_shape[1:], out_shape[1:], strict=True)}
    if len(ratios) != 1:
        return None
    stride = ratios.pop()
    fits = all(-(-before // stride) == after for before, after in zip(in_shape[1:], out_shape[1:], strict=True))
    return stride if fits else None
