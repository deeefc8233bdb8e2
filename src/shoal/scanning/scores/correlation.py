"""How well a score orders the blocks: rank correlation with the damage of truly taking each out."""

import math
from collections.abc import Mapping
from typing import Literal

import scipy
from scipy.special import ndtri

from shoal.errors import NonFiniteError
from shoal.record import Interval

_Z = float(ndtri(0.975))


def rank_correlation(
    score: Mapping[str, float], damage: Mapping[str, float], high_means: Literal["keep", "remove"]
) -> tuple[float | None, Interval | None]:
    """Spearman's rho of score and damage over the blocks that have both, +1: ordered as the true damage orders them.

    The 95 % interval is Fisher's z with the variance of Bonett and Wright 2000 (Psychometrika 65:23). At rho = 1, where
    z is infinite, half the last step between two possible values stands in for it, so that the interval keeps a width.

    Args:
        score: by block path.
        damage: by block path, high = worse.
        high_means: what a high score asks for; 'remove' turns the sign.

    Returns:
        rho, None for fewer than two blocks or where one side is constant; and its interval, None for fewer than four.

    Raises:
        NonFiniteError: NaN among the values (infinite ones have a rank).
    """
    paths = [path for path in score if path in damage]
    scores, damages = [score[path] for path in paths], [damage[path] for path in paths]
    for name, values in (("scores", scores), ("damages", damages)):
        if bad := [path for path, value in zip(paths, values, strict=True) if math.isnan(value)]:
            raise NonFiniteError(f"NaN among the {name}: '{bad[0]}'", "It has no rank; leave the block out.")
    if len(set(scores)) < 2 or len(set(damages)) < 2:
        return None, None
    ranks = scipy.stats.rankdata(scores), scipy.stats.rankdata(damages)
    rho = float(scipy.stats.spearmanr(*ranks).statistic)
    rho = max(-1.0, min(1.0, rho if high_means == "keep" else -rho))
    return rho, _interval(rho, len(paths))


def _interval(rho: float, n: int) -> Interval | None:
    if n < 4:
        return None
    largest = 1 - 6 / (n**3 - n)
    z = math.atanh(max(-largest, min(largest, rho)))
    half = _Z * math.sqrt((1 + rho**2 / 2) / (n - 3))
    low, high = math.tanh(z - half), math.tanh(z + half)
    return min(low, rho), max(high, rho)
