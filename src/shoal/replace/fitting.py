"""Fit every stand-in of a table of spans in closed form, in one pass over the data.

Spans with the same start, stride and kernel share the same neighbourhoods, so their Gram matrix is summed and factored
once and every end is one more set of right-hand sides. Memory is that of one mini-batch and the moments.

Source: normal equations as in ReplaceMe (arXiv:2505.02819), here with neighbourhoods, bias, strides and a ridge chosen
on held-out samples, shrinking towards the shortcut where shapes match.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shoal.batches import Batch, call
from shoal.blocks import Anatomy
from shoal.errors import DataError, NonFiniteError
from shoal.plan import StandIn
from shoal.preserve import evaluating
from shoal.regress import Fit, Moments, fits
from shoal.replace.neighbourhoods import patches, picked, positions_of
from shoal.replace.recording import recording
from shoal.replace.spans import Span
from shoal.replace.stand_ins import Kind, build, describe, fill_

# Rows for each unknown of the map: some tens are enough, more cost time and change little.
ROWS_PER_UNKNOWN = 40
_HELD_OUT = 0.2


@dataclass(frozen=True, eq=False)
class Fitted:
    """A stand-in for a span, fitted.

    `r2_fit` and `r2_held_out` are of the sum before the tail; where they part, there were too few samples.
    """

    span: Span
    kind: Kind
    stand_in: StandIn
    module: nn.Module
    ridge: float
    r2_fit: float
    r2_held_out: float


@dataclass(frozen=True)
class Wanted:
    """One stand-in that is asked for."""

    span: Span
    kind: Kind
    rank: int | None = None


def fit_all(
    anatomy: Anatomy,
    batches: Sequence[Batch],
    wanted: Sequence[Wanted],
    *,
    seed: int = 0,
    tick: Callable[[int, int], None] | None = None,
) -> list[Fitted]:
    """Every stand-in of `wanted`, fitted on the activations of the network on `batches`.

    Args:
        anatomy: the original network; it is left as it was.
        batches: calibration mini-batches; a fifth of the samples of each is held out to choose the ridge.
        wanted: what to fit.
        seed: of the positions drawn.
        tick: called with (mini-batches done, mini-batches).

    Raises:
        DataError: too little data to hold any out.
        NonFiniteError: NaN or Inf in the activations.
    """
    groups = _groups(wanted)
    samples = sum(batch.size for batch in batches)
    sums = {key: SpanSums(key, members, samples, seed) for key, members in groups.items()}
    paths = sorted({path for one in wanted for path in (one.span.paths[0], one.span.paths[-1])})
    with evaluating(anatomy.model), recording(anatomy, paths) as seen:
        for number, batch in enumerate(batches, 1):
            call(anatomy.model, batch)
            for one in sums.values():
                one.add(seen.inputs, seen.sums)
            if tick is not None:
                tick(number, len(batches))
    like = next(anatomy.model.parameters())
    return [fitted for one in sums.values() for fitted in one.solved(like)]


@dataclass(frozen=True)
class SumsKey:
    """What spans must have in common to share their neighbourhoods: the first block, the stride, the kernel."""

    start: str
    stride: int
    kernel: int


def _groups(wanted: Iterable[Wanted]) -> dict[SumsKey, list[Wanted]]:
    found: dict[SumsKey, list[Wanted]] = {}
    for one in wanted:
        found.setdefault(SumsKey(one.span.paths[0], one.span.stride, int(one.kind[-1])), []).append(one)
    return found


class SpanSums:
    """The moments of one group: the same inputs, one set of outputs for every end."""

    def __init__(self, key: SumsKey, members: list[Wanted], samples: int, seed: int) -> None:
        self.key, self.members = key, members
        self.ends = list(dict.fromkeys(one.span.paths[-1] for one in members))
        widths = {one.span.paths[-1]: one.span.out_channels for one in members}
        starts, total = {}, 0
        for end in self.ends:
            starts[end], total = slice(total, total + widths[end]), total + widths[end]
        self.columns: dict[str, slice] = starts
        span = members[0].span
        self.first = span.layout == "channels_first"
        self.unknowns = span.in_channels * (key.kernel**2 if self.first else 1)
        self.most = max(8, math.ceil(ROWS_PER_UNKNOWN * self.unknowns / max(samples, 1)))
        self.train = Moments(self.unknowns, total, joint=False)
        self.held_out = Moments(self.unknowns, total, joint=False)
        self.generator = torch.Generator().manual_seed(seed)

    def add(self, inputs: dict[str, Tensor], sums: dict[str, Tensor]) -> None:
        """Take in one mini-batch: what enters each block, and the sums at the ends; a fifth is held out."""
        x, ys = inputs[self.key.start], [sums[end] for end in self.ends]
        held = max(1, round(_HELD_OUT * x.shape[0]))
        if x.shape[0] < 2:
            raise DataError("a mini-batch of one sample cannot be split", "Give at least 2 samples.")
        for moments, part in ((self.held_out, slice(0, held)), (self.train, slice(held, None))):
            rows, outputs = self._rows(x[part], [y[part] for y in ys])
            if not bool(torch.isfinite(rows).all() and torch.isfinite(outputs).all()):
                raise NonFiniteError(f"NaN or Inf in the activations at '{self.key.start}'", "Check weights and data.")
            moments.add(rows, outputs)

    def _rows(self, x: Tensor, ys: list[Tensor]) -> tuple[Tensor, Tensor]:
        if not self.first:
            flat = x.reshape(-1, x.shape[-1])
            keep = torch.randperm(len(flat), generator=self.generator)[: self.most * x.shape[0]].to(x.device)
            return flat[keep].double(), torch.cat([y.reshape(-1, y.shape[-1])[keep] for y in ys], dim=1).double()
        positions = positions_of(ys[0].shape[2:], self.most, self.generator)
        rows = patches(x, positions, kernel=self.key.kernel, stride=self.key.stride)
        return rows.double(), torch.cat([picked(y, positions) for y in ys], dim=1).double()

    def solved(self, like: Tensor) -> list[Fitted]:
        """Every member, fitted, in the dtype and on the device of `like`."""
        targets = self._target()
        found = dict(
            zip(self.ends, fits(self.train, self.held_out, list(self.columns.values()), target=targets), strict=True)
        )
        return [self._fitted(one, found[one.span.paths[-1]], like) for one in self.members]

    def _target(self) -> Tensor:
        """The shortcut as a map, for ends of the same shape; zero for the others."""
        target = torch.zeros(self.train.outputs, self.unknowns, dtype=torch.float64)
        centre = self.key.kernel**2 if self.first else 1
        for one in self.members:
            if one.span.keeps_shape:
                columns = self.columns[one.span.paths[-1]]
                for channel in range(one.span.in_channels):
                    target[columns.start + channel, channel * centre + centre // 2] = 1.0
        return target

    def _fitted(self, one: Wanted, fit: Fit, like: Tensor) -> Fitted:
        stand_in = describe(one.span, one.kind, one.rank)
        module = build(stand_in, like)
        if one.rank is None:
            fill_(module, stand_in, fit.weight, fit.bias)
            return Fitted(one.span, one.kind, stand_in, module, fit.ridge, fit.r2_fit, fit.r2_held_out)
        columns = self.columns[one.span.paths[-1]]
        residual = fit.weight - self._target()[columns]
        left, rows = _low_rank(residual, self.train.xx / max(self.train.n, 1), one.rank)
        bias = fit.bias + (residual - left @ rows) @ self.train.mean_x
        fill_(module, stand_in, left, bias, rows)
        weight = fit.weight - residual + left @ rows
        reached = [_r2(moments, weight, bias, columns) for moments in (self.train, self.held_out)]
        return Fitted(one.span, one.kind, stand_in, module, fit.ridge, *reached)


def _r2(moments: Moments, weight: Tensor, bias: Tensor, columns: slice) -> float:
    """Share of the spread of some of the outputs that a map explains."""
    whole, offset = torch.zeros_like(moments.xy.T), torch.zeros_like(moments.mean_y)
    whole[columns], offset[columns] = weight, bias
    error, spread = moments.error(whole, offset)[columns].sum(), moments.spread[columns].sum()
    return 1.0 - float(error / spread) if spread > 0 else 0.0


def _low_rank(weight: Tensor, covariance: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best map of a rank to the same outputs: reduced-rank regression (Izenman 1975), left @ rows.

    The outputs weight @ x have covariance weight C weight^T; its leading eigenvectors span the outputs to keep.
    """
    outputs = weight @ covariance @ weight.T
    vectors = torch.linalg.eigh((outputs + outputs.T) / 2).eigenvectors[:, -rank:]
    return vectors, vectors.T @ weight
