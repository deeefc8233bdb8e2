"""Ridge regression with an unpenalised bias from moments alone, shrinking towards zero or towards any given map.

W = T + (Sxy - T Sxx)(Sxx + r I)^-1 in centred moments, with r = ridge * trace(Sxx) / d, so that one and the same ridge
means the same for any scale of the features and any number of rows (Hoerl and Kennard 1970, Technometrics 12:55, with
a target T in place of 0). The ridge is the one with the least error on held-out rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from shoal.errors import DataError, NonFiniteError, UsageError
from shoal.regress.moments import Moments

RIDGES = (0.0, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)

# Directions with less than this share of the largest variance: float64 sums of squares say nothing reliable about them.
_SINGULAR = 1e-12
# Vectors and steps of the iteration that estimates the least eigenvalue.
_PROBES, _ITERATIONS = 4, 3
# Random sums of outputs on which a ridge is chosen for more than twice as many.
_SKETCHED = 64
# A spread below this share of the sum of squares is the rounding of a constant.
_CONSTANT = 1e-24


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted map y = weight x + bias, float64.

    Args:
        weight: (outputs, inputs).
        bias: (outputs,).
        ridge: the ridge chosen, a share of the mean variance of the features.
        r2_fit: on the rows it was fitted to, over all outputs together.
        r2_held_out: on the held-out rows; where it stays far behind `r2_fit`, there are too few rows.
    """

    weight: Tensor
    bias: Tensor
    ridge: float
    r2_fit: float
    r2_held_out: float


def fit(train: Moments, held_out: Moments, *, target: Tensor | None = None, ridges: Sequence[float] = RIDGES) -> Fit:
    """The ridge regression on `train` whose ridge does best on `held_out`.

    Args:
        train: moments of the rows to fit.
        held_out: moments of other rows, of the same widths.
        target: the weight to shrink towards, (outputs, inputs); zero by default.
        ridges: what to choose from; of equally good ones the largest is taken.

    Raises:
        DataError: no rows, or widths that do not fit.
        NonFiniteError: NaN or Inf in the moments or the target.
        UsageError: no ridge, or a negative one.
    """
    return fits(train, held_out, [slice(0, train.outputs)], target=target, ridges=ridges)[0]


def fits(
    train: Moments,
    held_out: Moments,
    ends: Sequence[slice],
    *,
    target: Tensor | None = None,
    ridges: Sequence[float] = RIDGES,
) -> list[Fit]:
    """One fit for each group of outputs, each with its own ridge; every ridge is factored once for all of them.

    Args:
        train: moments of the rows to fit.
        held_out: moments of other rows, of the same widths.
        ends: the columns of y that belong together.
        target: the weight to shrink towards, (outputs, inputs); zero by default.
        ridges: what to choose from.

    Raises:
        DataError, NonFiniteError, UsageError: as for `fit`.
    """
    goal = _checked(train, target, ridges)
    _checked(held_out, target, ridges)
    if train.xy.shape != held_out.xy.shape:
        raise DataError(
            f"{train.inputs} inputs and {train.outputs} outputs to fit,"
            f" {held_out.inputs} and {held_out.outputs} held out",
            "Both must come from the same features and targets.",
        )
    inverse = _Inverse(train.xx)
    if max(end.stop - end.start for end in ends) > 2 * _SKETCHED:
        return _fits_by_sketch(train, held_out, ends, goal, inverse, ridges)
    best: list[tuple[float, float, Tensor, Tensor] | None] = [None] * len(ends)
    for ridge in sorted(ridges, reverse=True):
        weight, bias = _solve(train, ridge, goal, inverse)
        error = held_out.error(weight, bias)
        for number, end in enumerate(ends):
            before, now = best[number], float(error[end].sum())
            if before is None or now < before[0]:
                best[number] = (now, ridge, weight[end].clone(), bias[end].clone())
    return [
        Fit(weight, bias, ridge, _r2(train, weight, bias, end), _r2(held_out, weight, bias, end))
        for (_, ridge, weight, bias), end in zip(
            (solution for solution in best if solution is not None), ends, strict=True
        )
    ]


def _fits_by_sketch(
    train: Moments,
    held_out: Moments,
    ends: Sequence[slice],
    goal: Tensor | None,
    inverse: "_Inverse",
    ridges: Sequence[float],
) -> list[Fit]:
    """As `fits`, for groups of many outputs: of each the ridge is chosen on a few random sums of its outputs.

    The squared error of such a sum is, on average over the signs, that of all outputs together. So every ridge is tried
    on a tenth of the work, and only those that are chosen are solved for all outputs.
    """
    generator = torch.Generator().manual_seed(0)
    sketch = torch.zeros(train.outputs, _SKETCHED * len(ends), dtype=train.xx.dtype)
    for number, end in enumerate(ends):
        signs = torch.randint(0, 2, (end.stop - end.start, _SKETCHED), generator=generator) * 2.0 - 1.0
        sketch[end, number * _SKETCHED : (number + 1) * _SKETCHED] = signs.to(sketch)
    sketch = sketch.to(train.xx.device)
    sums = train.summed(sketch), held_out.summed(sketch)
    summed_goal = sketch.T @ goal if goal is not None else None
    most = [-math.inf] * len(ends)
    chosen = [max(ridges)] * len(ends)
    for ridge in sorted(ridges, reverse=True):
        weight, bias = _solve(sums[0], ridge, summed_goal, inverse)
        offset = sums[1].mean_y - weight @ sums[1].mean_x - bias
        gain = sums[1].gain(weight) - sums[1].n * offset.square()
        for number, now in enumerate(gain.reshape(len(ends), _SKETCHED).sum(1).tolist()):
            if now > most[number]:
                most[number], chosen[number] = now, ridge
    fitted: dict[int, Fit] = {}
    for number in sorted(range(len(ends)), key=chosen.__getitem__):  # those of one ridge share its factor
        end, ridge = ends[number], chosen[number]
        weight, bias = _solve(train.part(end), ridge, goal[end] if goal is not None else None, inverse)
        scores = (part.part(end) for part in (train, held_out))
        fitted[number] = Fit(weight, bias, ridge, *(r2(part, weight, bias) for part in scores))
    return [fitted[number] for number in range(len(ends))]


def solve(train: Moments, ridge: float, target: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weight (outputs, inputs) and bias (outputs,) for one given ridge.

    With ridge 0 and features that do not determine the weight (constant or dependent ones, fewer rows than unknowns)
    it is the solution nearest to `target`: what the data leaves open stays as it was.

    Raises:
        DataError, NonFiniteError, UsageError: as for `fit`.
    """
    return _solve(train, ridge, _checked(train, target, [ridge]), _Inverse(train.xx))


def r2(moments: Moments, weight: Tensor, bias: Tensor) -> float:
    """Share of the outputs' sum of squares about their mean, all outputs together, that `weight x + bias` explains.

    1 is a perfect fit; it is negative for a map that is worse than the mean. Constant outputs: 1 where they are met
    up to rounding, else 0.
    """
    return _r2(moments, weight, bias, slice(0, moments.outputs))


def _r2(moments: Moments, weight: Tensor, bias: Tensor, end: slice) -> float:
    part = moments.part(end)
    error, spread = float(part.error(weight, bias).sum()), float(part.spread.sum())
    size = spread + part.n * float(part.mean_y.square().sum())
    if spread <= _CONSTANT * size:
        return 1.0 if error <= _SINGULAR * size else 0.0
    return 1.0 - error / spread


def _solve(train: Moments, ridge: float, goal: Tensor | None, inverse: "_Inverse") -> tuple[Tensor, Tensor]:
    right_side = train.xy if goal is None else train.xy - train.xx @ goal.T
    weight = inverse.times(ridge, right_side).T
    if goal is not None:
        weight = goal + weight
    return weight, train.mean_y - weight @ train.mean_x


class _Inverse:
    """(gram + r I)^-1 for one Gram matrix and any ridge; its eigenvectors are found once, and only where needed."""

    def __init__(self, gram: Tensor) -> None:
        self.gram = gram
        self._factored: tuple[float, Tensor | None] | None = None  # of the last ridge: large ones are not all kept

    def times(self, ridge: float, right_side: Tensor) -> Tensor:
        """(gram + r I)^-1 wanted, or the pseudo-inverse where that is singular."""
        added = ridge * float(self.gram.trace()) / len(self.gram)
        if self._factored is None or self._factored[0] != added:
            self._factored = added, self._factor(added)
        factor = self._factored[1]
        if factor is not None:
            return torch.cholesky_solve(right_side, factor)
        values, vectors = self._eigen
        kept = values > _SINGULAR * values.max().clamp(min=0)
        # In the null space the ridge would divide rounding errors by next to nothing: there the target stands.
        scaled = torch.where(kept, 1 / torch.where(kept, values + added, 1), 0)
        return vectors @ (scaled.unsqueeze(1) * (vectors.T @ right_side))

    def _factor(self, added: float) -> Tensor | None:
        """Cholesky's; None where the matrix is singular."""
        loaded = self.gram + added * torch.eye(len(self.gram), dtype=self.gram.dtype, device=self.gram.device)
        factor, failed = torch.linalg.cholesky_ex(loaded)
        # A pivot says little: small ones before it make the rounding of a dependent feature look like a fair size.
        singular = int(failed) or _least_eigenvalue(factor) <= _SINGULAR * float(loaded.diagonal().max())
        return None if singular else factor

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.gram)
        return values, vectors


def _least_eigenvalue(factor: Tensor) -> float:
    """About the least eigenvalue of L L^T: inverse iteration from some random vectors."""
    start = torch.Generator().manual_seed(0)
    vectors = torch.randn(len(factor), _PROBES, generator=start, dtype=factor.dtype).to(factor.device)
    least = math.inf
    for _ in range(_ITERATIONS):
        vectors = vectors / vectors.norm(dim=0)
        vectors = torch.cholesky_solve(vectors, factor)
        least = min(least, 1 / float(vectors.norm(dim=0).max().clamp_min(torch.finfo(factor.dtype).tiny)))
    return least


def _checked(moments: Moments, target: Tensor | None, ridges: Sequence[float]) -> Tensor | None:
    """The target as the moments' kind of tensor, once everything is known to be sound."""
    if not ridges or any(not math.isfinite(ridge) or ridge < 0 for ridge in ridges):
        raise UsageError(f"ridges {list(ridges)}", "Expected at least one finite number of 0 or more.")
    if moments.n == 0:
        raise DataError("a regression without rows", "Give at least one row to fit and one held out.")
    if not all(torch.isfinite(part).all() for part in (moments.xx, moments.xy, moments.yy)):
        raise NonFiniteError("the moments of a regression hold NaN or Inf", "The values are too large to be squared.")
    if target is None:
        return None
    if tuple(target.shape) != (moments.outputs, moments.inputs):
        raise DataError(
            f"a target of shape {tuple(target.shape)} for {moments.outputs} outputs and {moments.inputs} inputs",
            "Expected (outputs, inputs).",
        )
    if not torch.isfinite(target).all():
        raise NonFiniteError("the target of a regression holds NaN or Inf", "Check the weights it comes from.")
    return target.to(moments.xx)
