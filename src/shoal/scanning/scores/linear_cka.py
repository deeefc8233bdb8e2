"""How alike a block's input and output are, up to rotation and scale.

Source: Kornblith, Norouzi, Lee, Hinton 2019, arXiv:1905.00414, Sec. 3 (linear centred kernel alignment), with positions
as rows; the estimate is the plain, biased one, so it wants many more rows than channels.
"""

from shoal.scanning.scores.statistics import Statistics


def linear_cka(seen: Statistics) -> float | None:
    """|Sxy|^2 / (|Sxx| |Syy|) in Frobenius norms of centred moments; None where one side does not vary at all."""
    if seen.halves is None:
        return None
    both = seen.halves[0].merged(seen.halves[1])
    inner, outer = float(both.xx.norm()), float(both.yy.norm())
    if inner == 0 or outer == 0:
        return None
    return min(1.0, float(both.xy.norm()) ** 2 / (inner * outer))
