"""Spans: consecutive segments that one replacement may stand for, and what the replacement has to compute.

A replacement maps the input of the first segment to the sum of the last one (of a plain layer: to the input of its
activation); the activation that follows, the *tail*, stays. Where something other than an activation follows, it maps
to the output of the last segment. Nothing inside a span is read from outside it.
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
    """Segments `start` to `stop` - 1 of the chain.

    Args:
        start: index of the first segment in the chain.
        stop: index after the last.
        paths: the modules it covers; a replacement is installed at the first.
        layout: channels_first for images (C, H, W), channels_last for tokens (T, C) and plain features (C).
        in_shape: input shape of one sample.
        out_shape: output shape of one sample.
        stride: of the whole span, the same in both directions; 1 where there are no positions.
        tail: the activation after the sum.
        end: the name of the last segment.
        dilation: the largest of the k x k convolutions in the span.
        residual: whether it is made of residual blocks.
        output_formats: how each of `paths` takes and returns the stream.
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
    output_formats: tuple[OutputFormat, ...] = ()

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.in_shape[0] if self.layout == "channels_first" else self.in_shape[-1]

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.out_shape[0] if self.layout == "channels_first" else self.out_shape[-1]

    @property
    def keeps_shape(self) -> bool:
        """Whether input and output have the same shape."""
        return self.in_shape == self.out_shape

    @property
    def name(self) -> str:
        """From the first module to the last segment."""
        return f"{self.paths[0]}..{self.end}"


def find_spans(graph: BlockGraph, chain: SegmentChain, longest: int) -> list[Span]:
    """Every span of up to `longest` segments that a replacement can be fitted for."""
    spans = []
    varying = _varying_strides(graph, chain)
    for start in range(len(chain.segments)):
        for stop in range(start + 1, min(start + longest, len(chain.segments)) + 1):
            if not all(chain.is_contiguous[start + 1 : stop]) or chain.segments[stop - 1].path in varying:
                break
            span = _span(graph.model, chain, start, stop)
            if span is not None:
                spans.append(span)
    return spans


def _span(model: nn.Module, chain: SegmentChain, start: int, stop: int) -> Span | None:
    segments = chain.segments[start:stop]
    first, last = segments[0], segments[-1]
    layout = stream_layout(model, first)
    if layout is None or len(first.in_shape) != len(last.out_shape):
        return None
    if not (first.can_bound_span and last.can_bound_span):
        return None
    # Segment by segment: 9 positions to 5 to 3 is a stride of 4, though 3 would do for 9 to 3.
    strides = [_stride(segment.in_shape, segment.out_shape, layout) for segment in segments]
    if None in strides:
        return None
    return Span(
        start,
        stop,
        tuple(path for segment in segments for path in segment.paths),
        layout,
        first.in_shape,
        last.out_shape,
        prod(stride for stride in strides if stride is not None),
        last.tail,
        last.path,
        _dilation(model, segments),
        first.residual,
        tuple(segment.output_format for segment in segments for _ in segment.paths),
    )


def _varying_strides(graph: BlockGraph, chain: SegmentChain) -> set[str]:
    """The segments whose stride on inputs of other sizes is not that on the traced one.

    An adaptive pooling to 4 x 4 halves 8 x 8, but no map of this stride can replace it.
    """
    if graph.example is None or is_offloaded(graph.model):  # each run of an offloaded network reads the disk
        return set()
    strides = {}
    for segment in chain.segments:
        layout = stream_layout(graph.model, segment)
        stride = _stride(segment.in_shape, segment.out_shape, layout) if layout is not None else None
        if layout is not None and stride is not None:
            strides[segment.path] = (layout, stride)
    varying: set[str] = set()
    for group in resized(graph.example):
        shapes = next((shapes for batch in group if (shapes := _segment_shapes(graph.model, chain, batch))), {})
        for path, (in_shape, out_shape) in shapes.items():
            if path in strides and not _has_stride(in_shape, out_shape, *strides[path]):
                varying.add(path)
    return varying


_Shape = tuple[int, ...]


def _segment_shapes(model: nn.Module, chain: SegmentChain, batch: Batch) -> dict[str, tuple[_Shape, _Shape]]:
    """Input and output shape of every segment on this input, of one sample; empty where the network refuses it."""
    in_shapes: dict[str, _Shape] = {}
    out_shapes: dict[str, _Shape] = {}

    def record_input(segment: Segment) -> Callable[..., None]:
        return lambda module, args, kwargs: in_shapes.__setitem__(
            segment.path, tuple(segment.output_format.entering(args, kwargs).shape[1:])
        )

    def record_output(segment: Segment) -> Callable[..., None]:
        return lambda module, args, output: out_shapes.__setitem__(
            segment.path, tuple(segment.output_format.stream(output).shape[1:])
        )

    with ExitStack() as stack, evaluating(model):
        for segment in chain.segments:
            first, last = (model.get_submodule(path) for path in (segment.paths[0], segment.paths[-1]))
            stack.callback(first.register_forward_pre_hook(record_input(segment), with_kwargs=True).remove)
            stack.callback(last.register_forward_hook(record_output(segment)).remove)
        try:
            call(model, batch)
        except ModelRaisedError:
            return {}
    return {path: (shape, out_shapes[path]) for path, shape in in_shapes.items() if path in out_shapes}


def _has_stride(in_shape: _Shape, out_shape: _Shape, layout: Layout, stride: int) -> bool:
    if layout == "channels_last":
        return in_shape[:-1] == out_shape[:-1]
    return all(-(-before // stride) == after for before, after in zip(in_shape[1:], out_shape[1:], strict=True))


def stream_layout(model: nn.Module, segment: Segment) -> Layout | None:
    """Where the channels are, inferred from the convolutions that read the segment's input; None where unsupported."""
    modules = [module for path in segment.paths for module in model.get_submodule(path).modules()]
    shape = segment.in_shape
    first = shape[0]
    if len(shape) == 3 and any(isinstance(module, nn.Conv2d) and module.in_channels == first for module in modules):
        return "channels_first"
    # A signal (C, T) or a volume (C, D, H, W): there is no replacement for these.
    unsupported = [module for module in modules if isinstance(module, nn.Conv1d | nn.Conv3d)]
    if len(shape) > 1 and any(module.in_channels == first for module in unsupported):
        return None
    return "channels_last"


def _dilation(model: nn.Module, segments: tuple[Segment, ...]) -> int:
    dilations = [
        max(module.dilation)
        for segment in segments
        for path in segment.paths
        for module in model.get_submodule(path).modules()
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1
    ]
    return int(max(dilations, default=1))


def _stride(in_shape: tuple[int, ...], out_shape: tuple[int, ...], layout: Layout) -> int | None:
    """The stride of a segment, the same in both directions; None where there is none."""
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
