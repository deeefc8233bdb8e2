"""Which plans a budget comes down to: built, refitted, timed for longer; for a race several, else the best of them.

What is chosen without a race is timed in a run of its own, and answered by another plan where it is too slow.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from shoal.errors import NotReachedError
from shoal.pipeline.budget_check import MIN_USED, confirmed, expected_ratio
from shoal.pipeline.plan_measure import NEAR, SLACK, MeasuredPlan, PlanBudget, PlanMeter
from shoal.pipeline.plan_pool import PlanPool
from shoal.pipeline.plan_race import Race, RaceOutcome
from shoal.pipeline.race_store import Shortlist
from shoal.record import BudgetCheck

# How many plans are compared where there is no race.
_POOL_SIZE = 8
# At most this many plans are timed for longer, where there is no race.
_MAX_RETIMED = 4
# So many more are timed for longer than a race has room for: some of them prove too slow.
_SPARE = 4
# How often faster plans are sought, where none was fast enough when timed for longer.
_FASTER_ROUNDS = 2


@dataclass(frozen=True, eq=False)
class ShortlistMaker:
    """Makes the shortlist of one budget.

    Args:
        meter: builds plans and measures them.
        budget: what all have to meet.
        race: of plans, where the network is recovered afterwards.
    """

    meter: PlanMeter
    budget: PlanBudget
    race: Race | None = None

    def make(self) -> Shortlist:
        """The plans that were built, and those to choose from: within the budget when timed for longer.

        Without a race that is the one of least damage after a refit; where none is within the budget, the fastest. For
        a race none is refitted: what a refit gains is lost again after some hundred steps (docs/figures.md).

        Raises:
            NotReachedError: no plan meets the budget, by the tables.
        """
        meter, budget, race = self.meter, self.budget, self.race
        pool = PlanPool(meter, budget, samples=meter.builder.fit)
        pool.solve_rounds()
        if not pool.plans:
            raise NotReachedError(meter.unreachable(budget), "Ask for less, or allow longer spans.")
        changed = bool(meter.builder.actions(pool.plans[0].path))
        size = race.size(pool.plans[0], meter.builder) if race is not None and changed else 0
        pool.recovery = size > 0
        pool.fill(size or _POOL_SIZE)
        timed = self._timed(pool, size)
        for _ in range(_FASTER_ROUNDS):
            if not meter.backend.measures or any(map(budget.is_met, timed)) or not pool.tighten(_fastest(timed)):
                break
            timed = self._timed(pool, size)
        met = [plan for plan in timed if budget.is_met(plan)]
        runners = _contenders(met, size)
        if race is not None and len(runners) > 1:
            for plan in runners:
                race.store.keep_start(plan.path, meter.builder.build(plan.path))
            return Shortlist(pool.plans, runners, pool.notes, steps=race.steps)
        chosen, check = self._confirmed([*runners, *met, *timed], pool)
        return Shortlist(pool.plans, [chosen], pool.notes, check)

    def _confirmed(self, timed: list[MeasuredPlan], pool: PlanPool) -> tuple[MeasuredPlan, BudgetCheck | None]:
        """The best plan that meets the budget in a run of its own; others are asked for where it is missed, or unused.

        Args:
            timed: plans that were timed for longer, the best first.
            pool: gets what the checks measured, and is asked for more plans.
        """
        budget = self.budget
        first = next((plan for plan in timed if budget.is_met(plan)), _fastest(timed))
        if not self.meter.can_check(budget):
            return first, None
        known = list(timed)
        tried: set[tuple[int, ...]] = set()

        def check(plan: MeasuredPlan) -> BudgetCheck:
            tried.add(plan.path.edges)
            return self.meter.check(plan, budget)

        def another(plan: MeasuredPlan, checked: BudgetCheck) -> MeasuredPlan | None:
            measured = replace(plan, latency_ratio=expected_ratio(checked))
            pool.update([measured])
            # What proved slower than it seemed says the same of the others.
            excess = 1.0 if checked.met else max(1.0, measured.latency_ratio / plan.latency_ratio)
            lowest = plan.latency_ratio if checked.met else 0.0
            fitting = _between(known, tried, MIN_USED * budget.latency_ratio, budget.latency_ratio / excess)
            if not fitting:
                fresh = self.meter.retimed(pool.tighten(measured))
                near = _between(fresh, tried, lowest, SLACK * budget.latency_ratio)
                # A refit takes far longer than a timing: only those are refitted that it may come down to.
                fitting = self.meter.refitted(sorted(near, key=lambda candidate: candidate.rank)[:_MAX_RETIMED])
                refitted = {candidate.path.edges: candidate for candidate in fitting}
                fresh = [refitted.get(candidate.path.edges, candidate) for candidate in fresh]
                pool.update(fresh)
                known.extend(fresh)
            if not fitting and not checked.met:  # what comes nearest, if nothing meets it
                fitting = [_fastest(known)] if _fastest(known).path.edges not in tried else []
            return min(fitting, key=lambda candidate: candidate.rank, default=None)

        chosen, final = confirmed(first, check, another, lambda plan: plan.rank)
        chosen = replace(chosen, latency_ratio=final.worst.ratio)
        pool.update([chosen])
        return chosen, final

    def _timed(self, pool: PlanPool, size: int) -> list[MeasuredPlan]:
        """The plans to choose from, timed for longer, and the one that seemed the fastest; without a race refitted too.

        Of many plans timed shortly the one that seems fast enough may only have been lucky.

        Args:
            pool: gets what is measured.
            size: of the race; 0 for none: then only the best few are timed, and compared by their damage.
        """
        if size:
            leading = pool.contenders(size + _SPARE)
        else:
            self._refit(pool, pool.contenders(_POOL_SIZE))
            near = (plan for plan in pool.plans if self.budget.is_met(plan, NEAR))
            leading = sorted(near, key=lambda plan: plan.rank)[:_MAX_RETIMED]
        if self.meter.can_check(self.budget):
            fastest = _fastest(pool.plans)
            leading = self.meter.retimed([*leading, *([fastest] if fastest not in leading else [])])
            pool.update(leading)
        return leading if size else sorted(leading, key=lambda plan: plan.rank)

    def _refit(self, pool: PlanPool, plans: Sequence[MeasuredPlan]) -> None:
        """Refit those to choose from, where there are several: the least damaged of them as they were built."""
        plans = sorted(plans, key=lambda plan: plan.damage)[: self.meter.builder.effort.quick_refits]
        if len(plans) > 1:
            pool.update(self.meter.refitted([plan for plan in plans if math.isinf(plan.refit_damage)]))


def confirmed_winner(
    meter: PlanMeter, outcome: RaceOutcome, budget: PlanBudget
) -> tuple[RaceOutcome, BudgetCheck | None]:
    """The plan that won a race, or the next best where it does not meet the budget in a run of its own."""
    if not meter.can_check(budget):
        return outcome, None
    following = iter(outcome.ranking[1:])
    chosen, check = confirmed(
        outcome.plan,
        lambda plan: meter.check(plan, budget),
        lambda plan, checked: None if checked.met else next(following, None),
        outcome.ranking.index,
    )
    if chosen.path != outcome.plan.path:
        note = "the winner of the race proved too slow when it was timed once more: the next best is taken"
        record = outcome.record.model_copy(update={"continued": False})
        outcome = replace(outcome, network=None, record=record, notes=[*outcome.notes, note])
    return replace(outcome, plan=replace(chosen, latency_ratio=check.worst.ratio)), check


def _contenders(met: Sequence[MeasuredPlan], size: int) -> list[MeasuredPlan]:
    """The first of these plans, which are within the budget, as many as a race has room for; of each rule only one."""
    first = {plan.origin: plan for plan in reversed(met)}
    return [plan for plan in met if plan.origin == "solver" or first[plan.origin] is plan][:size]


def _between(
    plans: Sequence[MeasuredPlan], tried: Collection[tuple[int, ...]], low: float, high: float
) -> list[MeasuredPlan]:
    """The plans that were not tried and take such a share of the original's latency."""
    return [plan for plan in plans if plan.path.edges not in tried and low <= plan.latency_ratio <= high]


def _fastest(plans: Sequence[MeasuredPlan]) -> MeasuredPlan:
    return min(plans, key=lambda plan: plan.latency_ratio)
