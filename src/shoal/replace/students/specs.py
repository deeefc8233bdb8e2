"""Which students could stand in for which spans, as plain data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from shoal.blocks import BlockGraph
from shoal.plan import Inner, Replacement
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
    anatomy: BlockGraph, line: SegmentChain, spans: Sequence[Span], kinds: Sequence[str]
) -> list[StudentSpec]:
    """Every student of these kinds (other names are left alone) that some span can have.

    Args:
        anatomy: of the original.
        line: its steps.
        spans: those of plain layers, and of blocks that return more than the stream, get none.
        kinds: names of STUDENTS.
    """
    found: list[StudentSpec] = []
    known: dict[str, list[ChannelGroup]] = {}
    for span in spans:
        steps = line.segments[span.start : span.stop]
        alone = span.residual and not any(step.output_format.index_path for step in steps)
        if not alone or not _asked_alike(anatomy, steps):
            continue
        for kind in kinds:
            if kind == "block":
                one = _one_block(anatomy, span, steps) or two_blocks(anatomy, span, line)
            else:
                one = _narrow(anatomy, known, span, steps, kind) if kind in _SHARES else None
            if one is not None:
                found.append(one)
    return found


def two_blocks(anatomy: BlockGraph, span: Span, line: SegmentChain) -> StudentSpec | None:
    """Two blocks of the span in its place, where it is longer than that."""
    steps = line.segments[span.start : span.stop]
    copied = _chain(steps, span, 2) if len(steps) >= _FEWEST_FOR_TWO else None
    return StudentSpec(span, _TWO, _described(span, "block", copied), anatomy.model) if copied else None


def _one_block(anatomy: BlockGraph, span: Span, steps: Sequence[Segment]) -> StudentSpec | None:
    copied = _chain(steps, span, 1) if len(steps) > 1 else None
    return StudentSpec(span, "block", _described(span, "block", copied), anatomy.model) if copied else None


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
    anatomy: BlockGraph, known: dict[str, list[ChannelGroup]], span: Span, steps: Sequence[Segment], kind: str
) -> StudentSpec | None:
    """All blocks of the span with a share of their inner features; None where a block has no such features."""
    inner: list[Inner] = []
    for step in steps:
        if step.path not in known:
            known[step.path] = groups_of(anatomy, step.path)
        own = [_inner(group, _SHARES[kind]) for group in known[step.path]]
        if not own:
            return None
        inner += [one for one in own if one is not None]
    if not inner:
        return None
    described = _described(span, "narrow", tuple(step.path for step in steps), tuple(inner))
    return StudentSpec(span, kind, described, anatomy.model)


def _inner(group: ChannelGroup, share: float) -> Inner | None:
    """A share of a group, None where rounding leaves all of it."""
    width = max(1, round(group.features * share))
    if width > _MULTIPLE:
        width = -(-width // _MULTIPLE) * _MULTIPLE
    if width >= group.features:
        return None
    return Inner(writers=group.writers, keepers=group.keepers, readers=group.readers, width=width)


def _asked_alike(anatomy: BlockGraph, steps: Sequence[Segment]) -> bool:
    """Whether all blocks are given the same beside the stream: a student gets what the first of them was given."""
    given = [_others(anatomy, step.path) for step in steps]
    return all(one == given[0] for one in given)


def _others(anatomy: BlockGraph, path: str) -> tuple[Any, Any]:
    call = anatomy.calls[path]
    return call.args[1:], call.kwargs
