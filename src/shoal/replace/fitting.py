"""Fit every stand-in of a table of spans in closed form, in one pass over the data.

Spans with the same start, stride, kernel and dilation share the same neighbourhoods, so their Gram matrix is summed and
factored once and every end is one more set of right-hand sides. Memory is that of one mini-batch and the moments.

Source: normal equations as in ReplaceMe (arXiv:2505.02819), here with neighbourhoods, bias, strides and a ridge chosen
on held-out samples, shrinking towards the shortcut where shapes match.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shoal.batches import Batch, call, like_of
from shoal.blocks import BlockGraph
from shoal.errors import DataError, NonFiniteError, UsageError
from shoal.plan import Replacement
from shoal.preserve import evaluating
from shoal.regress import Fit, Moments, fits, r2
from shoal.replace.kinds import KINDS, MomentsView, ReplacementType
from shoal.replace.modules import build_replacement, load_solution_, with_shortcut
from shoal.replace.neighbourhoods import patches, picked, positions_of
from shoal.replace.recording import recording
from shoal.replace.spans import Span

# Rows for each unknown of the map: some tens are enough, more cost time and change little.
ROWS_PER_UNKNOWN = 40
# A Gram matrix of this many unknowns takes 170 MB; beyond it neither memory nor time are worth it.
MOST_UNKNOWNS = 4608
_HELD_OUT = 0.2


@dataclass(frozen=True, eq=False)
class FittedReplacement:
    """A stand-in for a span, fitted.

    `r2_fit` and `r2_held_out` are of the sum before the tail; where they part, there were too few samples.
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
    """One stand-in that is asked for: a name of the table KINDS; `shortcut` writes it as the shortcut plus the rest."""

    span: Span
    kind: str
    shortcut: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"no stand-in is called '{self.kind}'", f"There are {', '.join(KINDS)}.")
        if not self.rule.suits(self.span):
            raise UsageError(f"'{self.kind}' cannot stand in for {self.span.name}", f"It needs {self.rule.needs}.")

    @property
    def original(self) -> None:
        """A closed form is made of nothing but data."""

    @property
    def rule(self) -> ReplacementType:
        """The kind itself."""
        return KINDS[self.kind]

    @property
    def stand_in(self) -> Replacement:
        """As plain data."""
        described = self.rule.describe(self.span)
        return with_shortcut(described) if self.shortcut else described

    @property
    def name(self) -> str:
        """Of this stand-in at this span, unique in a network."""
        return f"{self.kind} {self.span.name}"

    @property
    def key(self) -> "MomentsKey":
        """What it shares its neighbourhoods with."""
        described = self.stand_in
        return MomentsKey(self.span.paths[0], self.span.stride, described.kernel, described.dilation)

    @property
    def unknowns(self) -> int:
        """Features of one position."""
        return self.span.in_channels * self.rule.kernel**2


def fit_all(
    anatomy: BlockGraph,
    batches: Sequence[Batch],
    wanted: Sequence[ReplacementSpec],
    *,
    seed: int = 0,
    rows_per_unknown: float = ROWS_PER_UNKNOWN,
    tick: Callable[[int, int], None] | None = None,
) -> list[FittedReplacement]:
    """Every stand-in of `wanted`, fitted on the activations of the network on `batches`.

    Args:
        anatomy: the original network; it is left as it was.
        batches: calibration mini-batches; a fifth of the samples of each is held out to choose the ridge.
        wanted: what to fit.
        seed: of the positions drawn.
        rows_per_unknown: how many positions to draw, about.
        tick: called with (mini-batches done, mini-batches).

    Raises:
        DataError: too little data to hold any out.
        NonFiniteError: NaN or Inf in the activations.
    """
    samples = sum(batch.size for batch in batches)
    sums = [SpanMoments(key, members, samples, seed, rows_per_unknown) for key, members in _groups(wanted).items()]
    paths = sorted({path for one in wanted for path in (one.span.paths[0], one.span.end)})
    with evaluating(anatomy.model), recording(anatomy, paths) as seen:
        for number, batch in enumerate(batches, 1):
            call(anatomy.model, batch)
            for one in sums:
                one.add(seen.inputs[one.key.start], [seen.target(end) for end in one.ends])
            if tick is not None:
                tick(number, len(batches))
    like = like_of(anatomy.model)
    return [fitted for one in sums for fitted in one.solved(like)]


def in_portions(wanted: Sequence[ReplacementSpec], most_bytes: float = 1e9) -> list[list[ReplacementSpec]]:
    """`wanted` in portions whose moments fit into so much memory; one pass over the data each."""
    portions: list[list[ReplacementSpec]] = []
    left = 0.0
    for members in _groups(wanted).values():
        size = 32.0 * members[0].unknowns ** 2
        if not portions or size > left:
            portions.append([])
            left = most_bytes
        portions[-1] += members
        left -= size
    return portions


@dataclass(frozen=True)
class MomentsKey:
    """What spans must have in common to share their neighbourhoods: the first step, stride, kernel, dilation."""

    start: str
    stride: int
    kernel: int
    dilation: int = 1


def _groups(wanted: Iterable[ReplacementSpec]) -> dict[MomentsKey, list[ReplacementSpec]]:
    found: dict[MomentsKey, list[ReplacementSpec]] = {}
    for one in wanted:
        found.setdefault(one.key, []).append(one)
    return found


class SpanMoments:
    """The moments of one group: the same inputs, one set of outputs for every end."""

    def __init__(
        self,
        key: MomentsKey,
        members: list[ReplacementSpec],
        samples: int,
        seed: int = 0,
        rows_per_unknown: float = ROWS_PER_UNKNOWN,
    ) -> None:
        self.key, self.members = key, members
        self.ends = list(dict.fromkeys(one.span.end for one in members))
        widths = {one.span.end: one.span.out_channels for one in members}
        starts, total = {}, 0
        for end in self.ends:
            starts[end], total = slice(total, total + widths[end]), total + widths[end]
        self.columns: dict[str, slice] = starts
        self.images = members[0].span.layout == "channels_first"
        self.unknowns = members[0].unknowns
        self.most = max(8, math.ceil(rows_per_unknown * self.unknowns / max(samples, 1)))
        self.train = Moments(self.unknowns, total, joint=False)
        self.held_out = Moments(self.unknowns, total, joint=False)
        self.generator = torch.Generator().manual_seed(seed)

    def add(self, x: Tensor, ys: list[Tensor]) -> None:
        """Take in one mini-batch: what enters the span, and the sum at each of `ends`; a fifth is held out."""
        for moments, part in fit_heldout_slices(self.train, self.held_out, x.shape[0]):
            rows, outputs = self._rows(x[part], [y[part] for y in ys])
            if not bool(torch.isfinite(rows).all() and torch.isfinite(outputs).all()):
                raise NonFiniteError(f"NaN or Inf in the activations at '{self.key.start}'", "Check weights and data.")
            moments.add(rows, outputs)

    def _rows(self, x: Tensor, ys: list[Tensor]) -> tuple[Tensor, Tensor]:
        if not self.images:
            flat = x.reshape(-1, x.shape[-1])
            keep = torch.randperm(len(flat), generator=self.generator)[: self.most * x.shape[0]].to(x.device)
            return flat[keep].double(), torch.cat([y.reshape(-1, y.shape[-1])[keep] for y in ys], dim=1).double()
        positions = positions_of(ys[0].shape[2:], self.most, self.generator)
        key = self.key
        rows = patches(x, positions, kernel=key.kernel, stride=key.stride, dilation=key.dilation)
        return rows.double(), torch.cat([picked(y, positions) for y in ys], dim=1).double()

    def solved(self, like: Tensor) -> list[FittedReplacement]:
        """Every member, fitted, in the dtype and on the device of `like`."""
        target = self._shortcuts()
        found = dict(
            zip(self.ends, fits(self.train, self.held_out, list(self.columns.values()), target=target), strict=True)
        )
        return [self._fitted(one, found[one.span.end], target, like) for one in self.members]

    def _shortcuts(self) -> Tensor:
        """The shortcut as a map, for ends of the same shape; zero for the others."""
        target = torch.zeros(self.train.outputs, self.unknowns, dtype=torch.float64)
        around = self.key.kernel**2
        for one in self.members:
            if one.span.keeps_shape:
                columns = self.columns[one.span.end]
                for channel in range(one.span.in_channels):
                    target[columns.start + channel, channel * around + around // 2] = 1.0
        return target

    def _fitted(self, one: ReplacementSpec, fit: Fit, target: Tensor, like: Tensor) -> FittedReplacement:
        columns, stand_in = self.columns[one.span.end], one.stand_in
        solution = one.rule.solve(MomentsView(self.train, self.held_out, columns, target[columns]), fit, stand_in)
        module = build_replacement(stand_in, like)
        load_solution_(module, solution)
        parts = (self.train.part(columns), self.held_out.part(columns))
        reached = [r2(part, solution.weight, solution.bias) for part in parts]
        return FittedReplacement(one.span, one.kind, stand_in, module, solution.ridge, *reached)


def fit_heldout_slices(train: Moments, held_out: Moments, samples: int) -> list[tuple[Moments, slice]]:
    """Which samples of a mini-batch are held out, and which are fitted.

    Raises:
        DataError: a single sample cannot be split.
    """
    if samples < 2:
        raise DataError("a mini-batch of one sample cannot be split", "Give at least 2 samples.")
    held = max(1, round(_HELD_OUT * samples))
    return [(held_out, slice(0, held)), (train, slice(held, None))]
