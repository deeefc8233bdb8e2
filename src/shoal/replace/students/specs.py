"""Which students could stand in for which spans, as plain data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from shoal.blocks import BlockGraph
from shoal.plan import Inner, Replacement
from shoal.replace.output_format import PLAIN
from shoal.replace.segments import Segment, SegmentChain
from shoal.replace.spans import Span
from shoal.replace.students.channel_groups import ChannelGroup, groups_of

# The names by which students are asked for, and the share of the inner features that a narrow one keeps.
STUDENTS = ("block", "narrow", "narrow1/4")
_SHARES = {"narrow": 0.5, "narrow1/4": 0.25}
# Widths are rounded up to a multiple of this where they are larger: what processors like.
_MULTIPLE = 8
_TWO = "block2"
_FEWEST_FOR_TWO = 3


@dataclass(frozen=True, eq=False)
class StudentSpec:
    """One student that is asked for; `kind` is a name of STUDENTS, or 'block2' for two blocks."""

    span: Span
    kind: str
    stand_in: Replacement
    original: nn.Module

    @property
    def name(self) -> str:
        """Of this student at this span, unique in a network."""
        return f"{self.kind} {self.span.name}"


def students_of(
    graph: BlockGraph, line: SegmentChain, spans: Sequence[Span], kinds: Sequence[str]
) -> list[StudentSpec]:
    """Every student of these kinds (other names are left alone) that some span can have.

    Args:
        graph: of the original.
        line: its steps.
        spans: those of plain layers, and of blocks that return more than the stream or are given it by keyword, get
            none.
        kinds: names of STUDENTS.
    """
    specs: list[StudentSpec] = []
    known: dict[str, list[ChannelGroup]] = {}
    for span in spans:
        steps = line.segments[span.start : span.stop]
        alone = span.residual and all(step.output_format == PLAIN for step in steps)
        if not alone or not _same_side_inputs(graph, steps):
            continue
        for kind in kinds:
            if kind == "block":
                spec = _one_block(graph, span, steps) or two_blocks(graph, span, line)
            else:
                spec = _narrow(graph, known, span, steps, kind) if kind in _SHARES else None
            if spec is not None:
                specs.append(spec)
    return specs


def two_blocks(graph: BlockGraph, span: Span, line: SegmentChain) -> StudentSpec | None:
    """Two blocks of the span in its place, where it is longer than that."""
    steps = line.segments[span.start : span.stop]
    copied = _chain(steps, span, 2) if len(steps) >= _FEWEST_FOR_TWO else None
    return StudentSpec(span, _TWO, _described(span, "block", copied), graph.model) if copied else None


def _one_block(graph: BlockGraph, span: Span, steps: Sequence[Segment]) -> StudentSpec | None:
    copied = _chain(steps, span, 1) if len(steps) > 1 else None
    return StudentSpec(span, "block", _described(span, "block", copied), graph.model) if copied else None


def _chain(steps: Sequence[Segment], span: Span, count: int) -> tuple[str, ...] | None:
    """The first `count` blocks, in order, that together map the shape entering the span to the one leaving it."""

    def after(shape: tuple[int, ...], start: int, left: int) -> tuple[str, ...] | None:
        if left == 0:
            return () if shape == span.out_shape else None
        for number in range(start, len(steps)):
            if steps[number].in_shape == shape:
                rest = after(steps[number].out_shape, number + 1, left - 1)
                if rest is not None:
                    return (steps[number].path, *rest)
        return None

    return after(span.in_shape, 0, count)


def _described(span: Span, kind: str, copied: tuple[str, ...], inner: tuple[Inner, ...] = ()) -> Replacement:
    return Replacement(
        kind=kind,
        layout=span.layout,
        in_channels=span.in_channels,
        out_channels=span.out_channels,
        stride=span.stride,
        copies=copied,
        inner=inner,
    )


def _narrow(
    graph: BlockGraph, known: dict[str, list[ChannelGroup]], span: Span, steps: Sequence[Segment], kind: str
) -> StudentSpec | None:
    """All blocks of the span with a share of their inner features; None where a block has no such features."""
    inner: list[Inner] = []
    for step in steps:
        if step.path not in known:
            known[step.path] = groups_of(graph, step.path)
        narrowed = [_inner(group, _SHARES[kind]) for group in known[step.path]]
        if not narrowed:
            return None
        inner += [features for features in narrowed if features is not None]
    if not inner:
        return None
    described = _described(span, "narrow", tuple(step.path for step in steps), tuple(inner))
    return StudentSpec(span, kind, described, graph.model)


def _inner(group: ChannelGroup, share: float) -> Inner | None:
    """A share of a group, None where rounding leaves all of it."""
    width = max(1, round(group.features * share))
    if width > _MULTIPLE:
        width = -(-width // _MULTIPLE) * _MULTIPLE
    if width >= group.features:
        return None
    return Inner(writers=group.writers, keepers=group.keepers, readers=group.readers, width=width)


def _same_side_inputs(graph: BlockGraph, steps: Sequence[Segment]) -> bool:
    """Whether all blocks are given the same beside the stream: a student gets what the first of them was given."""
    side_inputs = [_side_inputs(graph, step.path) for step in steps]
    return all(inputs == side_inputs[0] for inputs in side_inputs)


def _side_inputs(graph: BlockGraph, path: str) -> tuple[Any, Any]:
    call = graph.calls[path]
    return call.args[1:], call.kwargs
