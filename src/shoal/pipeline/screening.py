"""Which spans and removals of a very deep network are worth a fit and a measurement: told from one recorded forward.

To fit and measure every candidate of a chain of L blocks takes time that grows with the square of L. So for a chain of
more than `UNSCREENED` segments one forward records the stream in front of each, and every span gets a score: the share
of what leaves it that the best affine map of each channel by itself does not explain (for a removal: that the shortcut
does not), by the block. Those of the lowest scores are kept, and in any case a row of spans that covers the chain, so
that small budgets can be met as well. Shorter chains are not screened: everything in them is fitted and measured.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from shoal.batches import Batch, call
from shoal.blocks import BlockGraph
from shoal.preserve import evaluating
from shoal.replace import Segment, SegmentChain, Span, stream_layout

UNSCREENED = 128
"""Chains of up to this many segments are measured whole."""
MAX_SPANS = 256
MAX_COVERING = 224
MAX_REMOVALS = 96
JUDGE_SAMPLES = 128
"""The tables of a screened network hold damages on so many samples; plans that are built are measured on all."""

# Positions of the stream that a score is computed from.
_ROWS = 256


@dataclass(frozen=True)
class Screening:
    """The spans and the removals (by segment) that are fitted and measured, and in one sentence which are not."""

    spans: list[Span]
    removals: frozenset[str]
    note: str | None = None


def is_screened(segments: SegmentChain) -> bool:
    """Whether a chain is too long to measure all of it, unless that is asked for (`MeasureConfig.screening`)."""
    return len(segments.segments) > UNSCREENED


def unscreened(segments: SegmentChain, spans: Sequence[Span]) -> Screening:
    """All spans, and all removals."""
    return Screening(list(spans), frozenset(segment.path for segment in segments.segments if segment.residual))


def screen(graph: BlockGraph, segments: SegmentChain, spans: Sequence[Span], batch: Batch) -> Screening:
    """The most promising spans and removals of a chain that is too long to measure all of it; of others all.

    Args:
        graph: of the network; it runs once, and is left as it was.
        segments: of the network.
        spans: those that could be replaced.
        batch: what the network is run on.
    """
    if not is_screened(segments):
        return unscreened(segments, spans)
    removals = [segment for segment in segments.segments if segment.residual]
    streams = _Streams.record(graph.model, segments, batch)
    scores = {span: streams.score(span.start, span.stop) / (span.stop - span.start) for span in spans}
    covering = _covering(spans, scores)
    ranked = dict.fromkeys([*covering, *sorted(spans, key=scores.__getitem__)])
    kept = set(list(ranked)[:MAX_SPANS])
    positions = {segment.path: number for number, segment in enumerate(segments.segments)}
    change = {segment.path: streams.change(positions[segment.path]) for segment in removals}
    removable = frozenset(sorted(change, key=change.__getitem__)[:MAX_REMOVALS])
    note = (
        f"a chain of {len(segments.segments)} segments is screened: of {len(spans)} spans {len(kept)} were fitted and "
        f"measured, of {len(removals)} removals {len(removable)}, those that change the stream least for each block by "
        f"one recorded forward, and {len(covering)} spans that cover the chain; damages in the tables are of up to "
        f"{JUDGE_SAMPLES} samples"
    )
    return Screening([span for span in spans if span in kept], removable, note)


def least_influence(
    graph: BlockGraph, segments: SegmentChain, spans: Sequence[Span], batch: Batch, count: int
) -> list[Span]:
    """Of the spans of each length the `count` whose segments behind the first turn the stream least.

    Source: block influence, Men et al. 2024, arXiv:2403.03853, here of several blocks at once.

    Args:
        graph: of the network; it runs once, and is left as it was.
        segments: of the network.
        spans: of two segments or more.
        batch: what the network is run on.
        count: how many of each length.
    """
    if not spans:
        return []
    streams = _Streams.record(graph.model, segments, batch)
    by_length: dict[int, list[Span]] = {}
    for span in sorted(spans, key=lambda span: streams.influence(span.start + 1, span.stop)):
        by_length.setdefault(span.stop - span.start, []).append(span)
    kept = {span for group in by_length.values() for span in group[:count]}
    return [span for span in spans if span in kept]


def _covering(spans: Sequence[Span], scores: dict[Span, float]) -> list[Span]:
    """Long spans that follow each other, of the offset for which their scores add up to least."""
    by_start: dict[int, list[Span]] = {}
    for span in sorted(spans, key=lambda span: span.stop):
        by_start.setdefault(span.start, []).append(span)
    length = max((span.stop - span.start for span in spans), default=1)
    rows = [_row(by_start, offset) for offset in range(length)]
    row = min(rows, key=lambda row: sum(scores[span] * (span.stop - span.start) for span in row))
    return sorted(row, key=scores.__getitem__)[:MAX_COVERING]


def _row(by_start: dict[int, list[Span]], offset: int) -> list[Span]:
    """One span after the other: up to `offset`, then the longest there are."""
    row: list[Span] = []
    position, end = 0, max(by_start, default=-1)
    while position <= end:
        fitting = [span for span in by_start.get(position, []) if span.stop <= offset or position >= offset]
        row += fitting[-1:]
        position = fitting[-1].stop if fitting else position + 1
    return row


@dataclass(frozen=True, eq=False)
class _Streams:
    """Some positions of the stream in front of each segment and behind the last, as rows of channels."""

    before: list[Tensor | None]
    behind: list[Tensor | None]

    @classmethod
    def record(cls, model: nn.Module, segments: SegmentChain, batch: Batch) -> "_Streams":
        """Run the network once on a mini-batch."""
        count = len(segments.segments)
        streams = cls([None] * count, [None] * count)
        with evaluating(model), ExitStack() as stack:
            for number, segment in enumerate(segments.segments):
                entering, leaving = streams._hooks(number, segment, _channel_axis(model, segment))
                first, last = (model.get_submodule(path) for path in (segment.paths[0], segment.paths[-1]))
                stack.callback(first.register_forward_pre_hook(entering, with_kwargs=True).remove)
                stack.callback(last.register_forward_hook(leaving).remove)
            call(model, batch)
        return streams

    def _hooks(self, number: int, segment: Segment, axis: int) -> tuple[Any, Any]:
        def entering(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.before[number] = _rows(segment.output_format.entering(args, kwargs), axis)

        def leaving(module: nn.Module, args: Any, output: Any) -> None:
            self.behind[number] = _rows(segment.output_format.stream(output), axis)

        return entering, leaving

    def score(self, start: int, stop: int) -> float:
        """The share of what leaves a span that no affine map of single channels explains; 0 where shapes differ."""
        x, y = self.before[start], self.behind[stop - 1]
        if x is None or y is None or x.shape != y.shape:
            return 0.0  # few do: they are kept
        x, centred = x - x.mean(0), y - y.mean(0)
        explained = (x * centred).sum(0).square() / x.square().sum(0).clamp_min(1e-12)
        return float((centred.square().sum(0) - explained).clamp_min(0).sum() / y.square().sum().clamp_min(1e-12))

    def influence(self, start: int, stop: int) -> float:
        """How far segments turn the stream: 1 - cosine of what enters and leaves; 0 where shapes differ."""
        x, y = self.before[start], self.behind[stop - 1]
        if x is None or y is None or x.shape != y.shape:
            return 0.0
        return 1.0 - float(nn.functional.cosine_similarity(x, y, dim=1).mean())

    def change(self, number: int) -> float:
        """How far a segment moves the stream, as a share of what leaves it; 0 where shapes differ."""
        x, y = self.before[number], self.behind[number]
        if x is None or y is None or x.shape != y.shape:
            return 0.0
        return float((y - x).square().sum() / y.square().sum().clamp_min(1e-12))


def _channel_axis(model: nn.Module, segment: Segment) -> int:
    """Where a stream has its channels: in front for images, signals and volumes, behind for tokens and NHWC images."""
    return -1 if stream_layout(model, segment) == "channels_last" else 1


def _rows(stream: Tensor, axis: int) -> Tensor:
    """Evenly spaced positions, the same for every stream of one shape."""
    rows = stream.movedim(axis, -1).reshape(-1, stream.shape[axis])
    return rows[:: max(1, len(rows) // _ROWS)][:_ROWS].detach().float().clone()
