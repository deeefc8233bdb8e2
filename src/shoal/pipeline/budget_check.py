"""Whether what was chosen meets its latency budget, by a timing that had no part in the choice.

Of many plans timed in one run the one that is chosen was lucky more often than not: its time in that run is too good.
So it is timed again, alone beside the original, until the interval is narrow. A plan that is too slow, or leaves more
of the budget than a step of the search explains, is answered by another.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from shoal.pipeline.latency_backends import WHOLE, LatencyBackend, parts_of
from shoal.record import BudgetCheck

# A budget is met where the interval's upper end is within so many times it, and used where the plan takes this share.
MAX_OVER, MIN_USED = 1.02, 0.95
# How many plans are checked, at most.
MAX_ATTEMPTS = 4

Plan = TypeVar("Plan")


def check_budget(backend: LatencyBackend, original: nn.Module, network: nn.Module, allowed: float) -> BudgetCheck:
    """Time a network beside the original, at every batch size, until the interval of the ratio is narrow.

    Args:
        backend: that can time whole networks.
        original: the network before.
        network: the network of the plan.
        allowed: the share of the original's latency that it may take.
    """
    models = {WHOLE: original, "compressed": network}
    ratios = [part.time_ratios(models, "confirming")["compressed"] for part in parts_of(backend)]
    return BudgetCheck(
        allowed=allowed,
        ratios=ratios,
        met=all(ratio.high <= MAX_OVER * allowed for ratio in ratios),
        used=max(ratio.ratio for ratio in ratios) / allowed,
    )


def is_settled(check: BudgetCheck) -> bool:
    """Whether no other plan need be asked for: the budget is met, and used."""
    return check.met and check.used >= MIN_USED


def expected_ratio(check: BudgetCheck) -> float:
    """The ratio to correct the tables by: above what was measured, where only the interval reaches too far."""
    if check.met:
        return check.worst.ratio
    return max(max(ratio.ratio, ratio.high / MAX_OVER) for ratio in check.ratios)


def confirmed(
    plan: Plan,
    check: Callable[[Plan], BudgetCheck],
    another: Callable[[Plan, BudgetCheck], Plan | None],
    rank: Callable[[Plan], Any],
) -> tuple[Plan, BudgetCheck]:
    """The plan, or another where it proves too slow or leaves too much of the budget, with the check it passed.

    Args:
        plan: that was chosen.
        check: times the network of a plan in a run of its own.
        another: the plan to look at after this check of the last; None where there is none.
        rank: what plans that meet the budget are compared by, the least is the best.
    """
    checked: list[tuple[Plan, BudgetCheck]] = []
    candidate: Plan | None = plan
    while candidate is not None and len(checked) < MAX_ATTEMPTS:
        checked.append((candidate, check(candidate)))
        candidate = None if is_settled(checked[-1][1]) else another(*checked[-1])

    def preference(pair: tuple[Plan, BudgetCheck]) -> tuple[Any, ...]:
        if not pair[1].met:
            return 2, max(ratio.high for ratio in pair[1].ratios)
        # What uses the budget keeps more of the network, which shows only after recovery.
        return int(not is_settled(pair[1])), rank(pair[0])

    chosen, its_check = min(checked, key=preference)
    return chosen, its_check.model_copy(update={"attempts": len(checked)})
