"""Spans: consecutive blocks that one stand-in may take the place of, and what it has to compute.

A stand-in maps what enters the first block to the sum of the last block's addition; what follows that addition (the
*tail*) stays behind it. No span crosses a tap: what is inside it is read nowhere else.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Literal

from torch import nn

from shoal.blocks import Anatomy
from shoal.blocks.template import Ref, refs
from shoal.blocks.trace import Call, Trace

Tail = Literal["identity", "relu"]
Layout = Literal["channels_first", "channels_last"]


@dataclass(frozen=True)
class Span:
    """Blocks `start` to `stop` - 1 of `line`, one after the other.

    Args:
        start: index of the first block in the line of replaceable blocks.
        stop: one behind the last.
        paths: their paths.
        layout: channels_first for images (C, H, W), channels_last for tokens (T, C) and plain features (C).
        in_shape: of one sample entering.
        out_shape: of one sample leaving.
        stride: of the whole span, the same in both directions; 1 where there are no positions.
        tail: what follows the sum.
    """

    start: int
    stop: int
    paths: tuple[str, ...]
    layout: Layout
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    stride: int
    tail: Tail

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


@dataclass(frozen=True)
class Line:
    """The blocks that spans may be made of, in order, with the runs that follow each other without a gap or a tap."""

    paths: tuple[str, ...]
    follows: tuple[bool, ...]
    """Whether each block takes exactly what the block before it returned, and nobody else does."""


def line_of(anatomy: Anatomy) -> Line:
    """Every block of the chain that takes one tensor and returns one, in the order they run."""
    calls = [anatomy.calls[block.path] for block in anatomy.chain if _is_plain(anatomy, block.path)]
    follows = [False]
    for before, after in pairwise(calls):
        follows.append(_feeds(anatomy.trace, before, after))
    return Line(tuple(call.path for call in calls), tuple(follows[: len(calls)]))


def spans_of(anatomy: Anatomy, line: Line, longest: int) -> list[Span]:
    """Every span of up to `longest` blocks that a stand-in can be fitted for."""
    found = []
    for start in range(len(line.paths)):
        for stop in range(start + 1, min(start + longest, len(line.paths)) + 1):
            if not all(line.follows[start + 1 : stop]):
                break
            span = _span(anatomy, line, start, stop)
            if span is not None:
                found.append(span)
    return found


def _span(anatomy: Anatomy, line: Line, start: int, stop: int) -> Span | None:
    paths = line.paths[start:stop]
    first, last = anatomy.chain[paths[0]], anatomy.chain[paths[-1]]
    tail = tail_of(anatomy, last.path)
    layout = _layout(anatomy, first.path)
    if tail is None or len(first.in_shape) != len(last.out_shape):
        return None
    if any(anatomy.calls[path].kwargs for path in paths):  # a stand-in takes the tensor and nothing else
        return None
    # Block by block: 9 positions to 5 to 3 is a stride of 4, though 3 would do for 9 to 3.
    strides = [_stride(anatomy.chain[path].in_shape, anatomy.chain[path].out_shape, layout) for path in paths]
    known = [one for one in strides if one is not None]
    if len(known) < len(strides):
        return None
    return Span(start, stop, paths, layout, first.in_shape, last.out_shape, prod(known), tail)


def _is_plain(anatomy: Anatomy, path: str) -> bool:
    call = anatomy.calls.get(path)
    if call is None or path not in anatomy.remainders:
        return False
    one_in = len(call.args) == 1 and isinstance(call.args[0], Ref) and not refs(call.kwargs)
    return one_in and isinstance(call.output, Ref)


def _feeds(trace: Trace, before: Call, after: Call) -> bool:
    value = before.output.value
    if after.args[0].value != value or value in refs(trace.output):
        return False
    return all(after.holds(op) for op in trace.readers.get(value, []))


def tail_of(anatomy: Anatomy, path: str) -> Tail | None:
    """What follows the last addition of a block: nothing or a ReLU; None for anything else."""
    call, last = anatomy.calls[path], anatomy.additions[path][-1]
    if call.output.value == last.result:
        return "identity"
    producer = anatomy.trace.values[call.output.value].producer
    op = anatomy.trace.ops[producer] if producer >= 0 else None
    if op is not None and op.name.rstrip("_") == "relu" and op.inputs == [last.result]:
        return "relu"
    return None


def tail_module(tail: Tail) -> nn.Module:
    """The module for a tail."""
    return nn.ReLU() if tail == "relu" else nn.Identity()


def _layout(anatomy: Anatomy, path: str) -> Layout:
    """Images are 3-d per sample and the block's layers are convolutions with as many channels as the first axis."""
    block = anatomy.chain[path]
    if len(block.in_shape) != 3:
        return "channels_last"
    module = anatomy.model.get_submodule(path)
    convolutions = [one for one in module.modules() if isinstance(one, nn.Conv2d)]
    return "channels_first" if any(one.in_channels == block.in_shape[0] for one in convolutions) else "channels_last"


def _stride(in_shape: tuple[int, ...], out_shape: tuple[int, ...], layout: Layout) -> int | None:
    """The stride of a block, the same in both directions; None where there is none."""
    if layout == "channels_last":
        return 1 if in_shape[:-1] == out_shape[:-1] else None
    ratios = {-(-before // after) for before, after in zip(in_shape[1:], out_shape[1:], strict=True)}
    if len(ratios) != 1:
        return None
    stride = ratios.pop()
    fits = all(-(-before // stride) == after for before, after in zip(in_shape[1:], out_shape[1:], strict=True))
    return stride if fits else None
