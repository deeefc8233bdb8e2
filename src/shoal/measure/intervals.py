"""95 % intervals and tests for shares, paired differences and means, as pure functions of counts and values.

All of them stay sensible at the edges: no failure, no discordant pair, a single value.
"""

import math
import operator
from collections.abc import Callable
from typing import Any, SupportsIndex

import numpy as np
import scipy
from scipy.special import ndtri

from shoal.errors import DataError, NonFiniteError, UsageError
from shoal.record import Interval

_LEVEL = 0.95
_Z = float(ndtri(0.5 + _LEVEL / 2))


def wilson(successes: float, n: SupportsIndex) -> Interval:
    """Wilson's score interval of a share (Wilson 1927, JASA 22:209), without continuity correction.

    Args:
        successes: how many of `n`. It may be a sum of per-sample shares in 0..1 (such as the share of
            positions that agree); the interval is then conservative, since such shares vary less than 0 and 1
            do.
        n: how many samples, at least 1.

    Returns:
        Lower and upper bound, fractions in 0..1.

    Raises:
        UsageError: `n` < 1, or `successes` outside 0..n.
    """
    count = _positive(n)
    if not 0 <= successes <= count:
        raise UsageError(f"{successes} successes of {count}", "Expected 0 <= successes <= n.")
    share, z2 = successes / count, _Z * _Z
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    # At the edges the bound is 0 or 1 in exact arithmetic; rounding must not put it beyond, or beside.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == count else min(1.0, centre + half)
    return low, high


def paired_drop(n: SupportsIndex, lost: SupportsIndex, won: SupportsIndex, confidence: float = 0.95) -> Interval:
    """Tango's score interval of a paired difference, (lost - won) / n.

    Tango 1998, Statistics in Medicine 17:891-908. It holds every difference that the score test does not
    reject, with the nuisance parameter where it is most likely under that difference. Without any discordant
    pair it is +-z^2 / (n + z^2), not of zero width.

    Args:
        n: how many pairs, at least 1.
        lost: pairs where the original is right and the other wrong.
        won: pairs where the original is wrong and the other right.
        confidence: of the interval; 0.95 unless several intervals are to hold together.

    Returns:
        Lower and upper bound of the drop, fractions in -1..1, positive = the other is worse.

    Raises:
        UsageError: `n` < 1, negative counts, or more discordant pairs than pairs.
    """
    count, down, up = _positive(n), _count(lost, "lost"), _count(won, "won")
    if down + up > count:
        raise UsageError(f"lost {down} and won {up} of {count} pairs", "Expected lost + won <= n.")

    z = _Z if confidence == 0.95 else float(scipy.stats.norm.ppf((1 + confidence) / 2))

    def margin(drop: float) -> float:
        return (down - up - count * drop) ** 2 - z * z * _score_variance(count, down, up, drop)

    estimate = (down - up) / count
    return _root(margin, -1.0, estimate), _root(margin, 1.0, estimate)


def _score_variance(n: int, lost: int, won: int, drop: float) -> float:
    """Variance of lost - won if the true difference were `drop`, the share of `won` most likely under it."""
    linear = (2 * n - lost + won) * drop - lost - won
    constant = -won * drop * (1 - drop)
    root = math.sqrt(max(0.0, linear * linear - 8 * n * constant))
    # Two forms of one root; each is free of cancellation on its side.
    share_won = (root - linear) / (4 * n) if linear <= 0 else -2 * constant / (root + linear)
    return max(0.0, n * (2 * share_won + drop * (1 - drop)))


def _root(margin: Callable[[float], float], end: float, estimate: float) -> float:
    # With no pair discordant, or all in one direction, the margin is zero at the estimate: start beside.
    inner = estimate + (end - estimate) * 1e-12
    if inner == end or margin(end) <= 0:
        return end
    return float(scipy.optimize.brentq(margin, *sorted((end, inner)), xtol=1e-14))


def mcnemar(lost: SupportsIndex, won: SupportsIndex) -> float:
    """Two-sided p of McNemar's exact test: are losing and winning equally likely?

    McNemar 1947, Psychometrika 12:153-157, in its binomial form.

    Args:
        lost: pairs where the original is right and the other wrong.
        won: pairs where the original is wrong and the other right.

    Returns:
        p in 0..1; 1 where no pair is discordant.

    Raises:
        UsageError: negative counts.
    """
    down, up = _count(lost, "lost"), _count(won, "won")
    if down + up == 0:
        return 1.0
    return float(scipy.stats.binomtest(down, down + up).pvalue)


def mean_interval(values: Any) -> Interval:
    """Student's t interval of a mean (Student 1908, Biometrika 6:1).

    Args:
        values: numbers, any shape (list, array or CPU tensor).

    Returns:
        Lower and upper bound in the unit of the values; (-inf, inf) for a single value, which says nothing
        about spread.

    Raises:
        DataError: no values.
        NonFiniteError: NaN or Inf among them.
    """
    flat = np.asarray(values, dtype=np.float64).ravel()
    if flat.size == 0:
        raise DataError("the mean of no values", "Give at least one value; at least two for a finite interval.")
    if not np.isfinite(flat).all():
        bad = int((~np.isfinite(flat)).sum())
        raise NonFiniteError(f"{bad} of {flat.size} values are NaN or Inf", "A mean of these has no interval.")
    if flat.size == 1:
        return -math.inf, math.inf
    centre = float(flat.mean())
    spread = float(flat.std(ddof=1)) / math.sqrt(flat.size)
    half = float(scipy.stats.t.ppf(0.5 + _LEVEL / 2, flat.size - 1)) * spread
    return centre - half, centre + half


def ratio_interval(totals: Any, counts: Any) -> Interval:
    """Interval of a mean over things that come in groups: sum(totals) / sum(counts), the groups being independent.

    Tokens of one text are not independent, texts are: with a token a thing and a text a group, only the spread between
    texts counts. The ratio estimator of Cochran 1977, Sampling Techniques, ch. 6, with Student's t over the groups.

    Args:
        totals: the sum over each group.
        counts: how many things each group holds, not all 0.

    Returns:
        Lower and upper bound; (-inf, inf) for a single group.

    Raises:
        DataError: nothing is counted, or unequal numbers of totals and counts.
        NonFiniteError: NaN or Inf among the totals.
    """
    sums, sizes = (np.asarray(values, dtype=np.float64).ravel() for values in (totals, counts))
    if sums.size != sizes.size or sizes.sum() <= 0:
        raise DataError(f"{sums.size} totals of {sizes.sum():g} things", "Give a total and a count for each group.")
    if not np.isfinite(sums).all():
        raise NonFiniteError("a total is NaN or Inf", "A mean of these has no interval.")
    groups = int((sizes > 0).sum())
    if groups < 2:
        return -math.inf, math.inf
    centre = float(sums.sum() / sizes.sum())
    residuals = sums - centre * sizes
    spread = math.sqrt(float((residuals**2).sum()) * groups / (groups - 1)) / float(sizes.sum())
    half = float(scipy.stats.t.ppf(0.5 + _LEVEL / 2, groups - 1)) * spread
    return centre - half, centre + half


def _positive(n: SupportsIndex) -> int:
    count = _count(n, "n")
    if count < 1:
        raise UsageError(f"n = {count} samples", "An interval needs at least one sample.")
    return count


def _count(value: SupportsIndex, name: str) -> int:
    try:
        count = operator.index(value)
    except TypeError as error:
        raise UsageError(f"{name} = {value!r} ({type(value).__name__})", "Expected a whole number.") from error
    if count < 0:
        raise UsageError(f"{name} = {count}", "Expected a count of 0 or more.")
    return count
