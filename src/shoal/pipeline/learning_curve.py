"""Where a student that has learned for a few steps would be after many, by the power law of its learning curve.

A plan of plain removal begins far behind one of replacements and falls faster: what is left after the first steps says
who began well, not who ends well. Divergence over steps is close to a straight line in logarithms.

Source: power-law extrapolation of learning curves, Domhan et al. 2015, IJCAI (pow3 without its asymptote).
"""

import math
from collections.abc import Sequence

_STEEPEST = 1.0  # the largest exponent that is believed: a curve falls fastest while it recovers from the first steps

Look = tuple[int, float]
"""A number of steps, and the divergence after them."""


def extrapolated(looks: Sequence[Look], until: int) -> float:
    """The divergence after `until` steps, by the last two looks; the last one where there is no other.

    Args:
        looks: in the order of their steps, which are positive.
        until: steps; not fewer than at the last look.
    """
    step, divergence = looks[-1]
    if len(looks) < 2 or not math.isfinite(divergence) or divergence <= 0:
        return divergence
    earlier_step, earlier = looks[-2]
    if not math.isfinite(earlier) or earlier <= divergence:  # it does not fall: no better than it is
        return divergence
    exponent = min(_STEEPEST, math.log(earlier / divergence) / math.log(step / earlier_step))
    return divergence * (step / max(until, step)) ** exponent
