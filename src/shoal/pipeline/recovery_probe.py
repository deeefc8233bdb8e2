"""Short recoveries of the best few plans, before one is chosen.

Damage before recovery is not the damage after it: a plan of plain removal, far behind at first, may draw level after
the same distillation, and fall behind at deep cuts. So plans with another mix of removals and stand-ins contend too.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from shoal.plan import Remove, Replace

Actions = Sequence[Remove | Replace]


@dataclass(frozen=True, eq=False)
class RecoveryProbe:
    """How contenders are told apart.

    Args:
        plans: how many contend, at most.
        recovered: the divergence that is left of a cut network, whose actions are given too, after a short recovery;
            infinite where that failed.
        each: how long that is, in words.
    """

    plans: int
    recovered: Callable[[nn.Module, Actions], float]
    each: str


def sentence(trial: RecoveryProbe, tried: Sequence[tuple[Actions, float, float]], best: int) -> str:
    """What came of it, in one sentence.

    Args:
        trial: how they were told apart.
        tried: of each contender the actions, the damage before and the divergence after.
        best: the number of the one that was chosen.
    """
    results = "; ".join(
        f"{sum(isinstance(action, Remove) for action in actions)} removed and "
        f"{sum(isinstance(action, Replace) for action in actions)} stand-ins {before:.4f} → {_left(after)}"
        for actions, before, after in tried
    )
    return f"{len(tried)} plans recovered for {trial.each} each: {results}; kept: plan {best + 1}"


def _left(divergence: float) -> str:
    return f"{divergence:.4f}" if math.isfinite(divergence) else "not recovered"
