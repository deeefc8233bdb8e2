"""Fit the replacements of many spans in closed form, in one pass over the data.

Spans with the same start, stride, kernel and dilation share their neighbourhoods, so their Gram matrix is summed and
factored once, and every end is one more set of right-hand sides. Memory is that of one mini-batch and the moments.

Source: normal equations as in ReplaceMe (arXiv:2505.02819), here with neighbourhoods, bias, strides and a ridge chosen
on held-out samples, shrinking towards the shortcut where shapes match.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from shoal.batches import Batch, call, like_of
from shoal.blocks import BlockGraph
from shoal.errors import UsageError
from shoal.plan import Replacement
from shoal.preserve import evaluating
from shoal.regress import Fit, fits, r2
from shoal.replace.heldout_moments import HeldOutMoments
from shoal.replace.kinds import REPLACEMENTS, MomentsView, ReplacementType
from shoal.replace.modules import build_replacement, load_solution_, with_shortcut
from shoal.replace.portions import fill_portions
from shoal.replace.recording import recording
from shoal.replace.row_sampler import ROWS_PER_UNKNOWN, RowSampler, Window
from shoal.replace.spans import Span

# A Gram matrix of this many unknowns takes 170 MB; beyond it neither memory nor time are worth it.
MAX_UNKNOWNS = 4608
# Bytes of the moments that are collected in one pass over the data.
_MAX_MOMENTS = 1e9


@dataclass(frozen=True, eq=False)
class FittedReplacement:
    """A replacement for a span, fitted.

    `r2_fit` and `r2_held_out` are of the sum before the tail; a gap between them means too few samples.
    """

    span: Span
    kind: str
    stand_in: Replacement
    module: nn.Module
    ridge: float
    r2_fit: float
    r2_held_out: float


@dataclass(frozen=True)
class ReplacementSpec:
    """A replacement to be fitted: a name of `REPLACEMENTS`; with `shortcut` written as the shortcut plus a residual."""

    span: Span
    kind: str
    shortcut: bool = False

    def __post_init__(self) -> None:
        if self.kind not in REPLACEMENTS:
            raise UsageError(f"there is no replacement '{self.kind}'", f"Choose from {', '.join(REPLACEMENTS)}.")
        if not self.type.supports(self.span):
            raise UsageError(f"'{self.kind}' cannot replace {self.span.name}", f"It needs {self.type.requirement}.")

    @property
    def original(self) -> None:
        """None: a closed form needs no blocks of the original."""

    @property
    def type(self) -> ReplacementType:
        """The kind of replacement."""
        return REPLACEMENTS[self.kind]

    @property
    def stand_in(self) -> Replacement:
        """The replacement as plain data."""
        replacement = self.type.spec(self.span)
        return with_shortcut(replacement) if self.shortcut else replacement

    @property
    def name(self) -> str:
        """The name of this replacement at this span, unique in a network."""
        return f"{self.kind} {self.span.name}"

    @property
    def key(self) -> "MomentsKey":
        """Replacements with the same key share their neighbourhoods."""
        replacement = self.stand_in
        return MomentsKey(self.span.paths[0], self.span.stride, replacement.kernel, replacement.dilation)

    @property
    def unknowns(self) -> int:
        """Features of one position."""
        return self.span.in_channels * self.type.kernel**2


def fit_all(
    graph: BlockGraph,
    batches: Sequence[Batch],
    specs: Sequence[ReplacementSpec],
    *,
    seed: int = 0,
    rows_per_unknown: float = ROWS_PER_UNKNOWN,
    on_progress: Callable[[int, int], None] | None = None,
    on_fitted: Callable[[list[FittedReplacement]], None] | None = None,
) -> list[FittedReplacement]:
    """Fit every replacement of `specs` to the activations of the network on `batches`.

    Args:
        graph: the original network; it is left as it was.
        batches: calibration mini-batches; a fifth of the samples is held out to choose the ridge.
        specs: what to fit.
        seed: of the positions drawn.
        rows_per_unknown: how many positions to draw, about.
        on_progress: called with (mini-batches done, mini-batches).
        on_fitted: called with those that share their inputs, as soon as they are solved.

    Raises:
        DataError: too little data to hold any out.
        NonFiniteError: NaN or Inf in the activations.
    """
    samples = sum(batch.size for batch in batches)
    groups = [SpanMoments(key, members, samples, seed, rows_per_unknown) for key, members in _groups(specs).items()]
    paths = sorted({path for spec in specs for path in (spec.span.paths[0], spec.span.end)})
    with evaluating(graph.model), recording(graph, paths) as record:
        for number, batch in enumerate(batches, 1):
            call(graph.model, batch)
            for moments in groups:
                x = record.inputs[moments.key.start]
                targets = [record.target(end) for end in moments.ends]
                moments.add(x, targets, batch.counted_in(x))
            if on_progress is not None:
                on_progress(number, len(batches))
    like = like_of(graph.model)
    fitted = []
    for moments in groups:
        fitted.append(moments.solve_all(like))
        if on_fitted is not None:
            on_fitted(fitted[-1])
    return [replacement for members in fitted for replacement in members]


def split_by_memory(specs: Sequence[ReplacementSpec], max_bytes: float = _MAX_MOMENTS) -> list[list[ReplacementSpec]]:
    """Split `specs` into portions whose moments fit into memory; each takes one pass over the data."""
    portions = fill_portions(_groups(specs).values(), lambda members: 32.0 * members[0].unknowns ** 2, max_bytes)
    return [[spec for members in portion for spec in members] for portion in portions]


def split_by_key(specs: Sequence[ReplacementSpec], parts: int) -> list[list[ReplacementSpec]]:
    """Up to so many portions of `specs`, in order; those that share moments stay together."""
    groups = list(_groups(specs).values())
    bounds = [number * len(groups) // parts for number in range(parts + 1)]
    portions = [[spec for group in groups[start:stop] for spec in group] for start, stop in pairwise(bounds)]
    return [portion for portion in portions if portion]


@dataclass(eq=False)
class FitScorer:
    """Fits portions of replacements, wherever it is run; what comes out depends on no other portion.

    Args:
        graph: the original network; it is left as it was.
        batches: calibration mini-batches.
        specs: all there are, by name.
    """

    graph: BlockGraph
    batches: Sequence[Batch]
    specs: Mapping[str, ReplacementSpec]

    def __call__(self, names: tuple[str, ...], _: None = None) -> list[FittedReplacement]:
        """The replacements with these names, in passes that memory suffices for."""
        portions = split_by_memory([self.specs[name] for name in names])
        return [fitted for portion in portions for fitted in fit_all(self.graph, self.batches, portion)]


@dataclass(frozen=True)
class MomentsKey:
    """What spans must have in common to share their neighbourhoods: first segment, stride, kernel, dilation."""

    start: str
    stride: int
    kernel: int
    dilation: int = 1


def _groups(specs: Iterable[ReplacementSpec]) -> dict[MomentsKey, list[ReplacementSpec]]:
    groups: dict[MomentsKey, list[ReplacementSpec]] = {}
    for spec in specs:
        groups.setdefault(spec.key, []).append(spec)
    return groups


class MomentsGroup(Protocol):
    """Replacements that are fitted by the same moments."""

    @property
    def size(self) -> float:
        """Bytes of the moments."""

    def solve_all(self) -> list[FittedReplacement]:
        """Every replacement, fitted; the moments are given up."""


GroupT = TypeVar("GroupT", bound=MomentsGroup)


def fit_in_passes(
    groups: Sequence[GroupT],
    collect: Callable[[Sequence[GroupT]], None],
    on_progress: Callable[[int, int], None] | None = None,
) -> list[FittedReplacement]:
    """Fit the replacements of all groups, in as many passes over the data as memory for their moments asks for.

    Args:
        groups: in the order of what is returned.
        collect: passes once over the data and adds them to the moments of some groups.
        on_progress: called with (passes done, passes).
    """
    portions = fill_portions(groups, lambda group: group.size, _MAX_MOMENTS)
    fitted: list[FittedReplacement] = []
    for done, portion in enumerate(portions, 1):
        collect(portion)
        fitted += [replacement for group in portion for replacement in group.solve_all()]
        if on_progress is not None:
            on_progress(done, len(portions))
    return fitted


class SpanMoments(HeldOutMoments):
    """The moments of the replacements with one key: shared inputs, one set of outputs for every end."""

    def __init__(
        self,
        key: MomentsKey,
        members: list[ReplacementSpec],
        samples: int,
        seed: int = 0,
        rows_per_unknown: float = ROWS_PER_UNKNOWN,
    ) -> None:
        self.key, self.members = key, members
        self.ends = list(dict.fromkeys(spec.span.end for spec in members))
        widths = {spec.span.end: spec.span.out_channels for spec in members}
        self.columns: dict[str, slice] = {}
        total = 0
        for end in self.ends:
            self.columns[end] = slice(total, total + widths[end])
            total += widths[end]
        window = Window(key.kernel, key.stride, key.dilation)
        on_images = members[0].span.layout == "channels_first"
        inputs = members[0].unknowns
        sampler = RowSampler(inputs, samples, window if on_images else None, rows_per_unknown, seed)
        super().__init__(sampler, inputs, total, f"at '{key.start}'")

    def solve_all(self, like: Tensor) -> list[FittedReplacement]:
        """Every member, fitted, in the dtype and on the device of `like`; the moments are given up."""
        train, held_out = (half.to("cpu") for half in self.given_up())
        target = self._shortcuts()
        by_end = dict(zip(self.ends, fits(train, held_out, list(self.columns.values()), target=target), strict=True))
        fitted = []
        for spec in self.members:
            columns = self.columns[spec.span.end]
            view = MomentsView(train, held_out, columns, target[columns])
            fitted.append(_solved(spec, view, by_end[spec.span.end], like))
        return fitted

    def _shortcuts(self) -> Tensor:
        """The shortcut as a map, for ends of the same shape; zero for the others."""
        target = torch.zeros(self.outputs, self.inputs, dtype=torch.float64)
        taps = self.key.kernel**2
        for spec in self.members:
            if spec.span.keeps_shape:
                columns = self.columns[spec.span.end]
                for channel in range(spec.span.in_channels):
                    target[columns.start + channel, channel * taps + taps // 2] = 1.0
        return target


def _solved(spec: ReplacementSpec, moments: MomentsView, fit: Fit, like: Tensor) -> FittedReplacement:
    replacement = spec.stand_in
    solution = spec.type.solve(moments, fit, replacement)
    module = build_replacement(replacement, like)
    load_solution_(module, solution)
    halves = (half.part(moments.columns) for half in (moments.train, moments.held_out))
    scores = [r2(half, solution.weight, solution.bias) for half in halves]
    return FittedReplacement(spec.span, spec.kind, replacement, module, solution.ridge, *scores)
