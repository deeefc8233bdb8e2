"""Choose by plan: the path of least damage under a budget, built, measured, corrected, solved again, and refitted.

Several plans are built for a budget (`plan_pool`) and measured end to end (`plan_measure`). Which of them is best is
measured, not believed: by a race of short distillations where a network is recovered afterwards (`plan_race`), else by
the damage that a refit leaves.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from shoal.errors import NotReachedError, UsageError
from shoal.pipeline.goals import Budget, ParetoPoint, points_text
from shoal.pipeline.guess_errors import guess_errors
from shoal.pipeline.judging import Judge
from shoal.pipeline.latency_backends import EstimatedLatency, LatencyBackend
from shoal.pipeline.plan_builder import PlanBuilder, RefinedPlan
from shoal.pipeline.plan_measure import MeasuredPlan, PlanMeter
from shoal.pipeline.plan_race import Race, RaceOutcome
from shoal.pipeline.plan_result import PlanResult, summary_of
from shoal.pipeline.plan_shortlist import ShortlistMaker, confirmed_winner
from shoal.plan import Path, Remove, Replace, front, solve
from shoal.record import BudgetCheck, FrontPoint, Planning, PlanRound, metric_drop

Progress = Callable[[str, int, int], None]

_FRONT_POINTS = 24


@dataclass
class PlanSearch:
    """Everything planning needs.

    Args:
        builder: makes networks of plans, from the tables.
        backend: where latencies come from.
    """

    builder: PlanBuilder
    backend: LatencyBackend

    def __post_init__(self) -> None:
        self.graph, self.tables, self.progress = self.builder.graph, self.builder.tables, self.builder.progress
        if not self.tables.segments.paths:
            note = self.graph.chain.note or "no block of the network can be taken out"
            raise NotReachedError(note, "`shoal trace` gives the reason for each block.")
        self.meter = PlanMeter(self.builder, self.backend)
        self.length = self.meter.length
        self.front = self.tables.corrected(front(self.tables.edges, self.length, points=_FRONT_POINTS))

    def pareto_points(self) -> list[FrontPoint]:
        """The front, fastest first."""
        return [self._point(path) for path in self.front]

    def predict(self, goal: Budget | ParetoPoint) -> FrontPoint:
        """The plan of least damage within budgets, or that at an index of the front, by the tables alone.

        Raises:
            NotReachedError: no plan meets the budgets.
            UsageError: there is no such point.
        """
        if isinstance(goal, ParetoPoint):
            return self._point(self._front_path(goal.index))
        budget = self.meter.plan_budget(goal)
        limits = self.meter.path_limits(budget.limits.latency_ms, budget)
        pairs = self.tables.pairs
        path = solve(self.tables.edges, self.length, limits, pairs=pairs) if limits is not None else None
        if path is None:
            raise NotReachedError(self.meter.unreachable(budget), "Ask for less, or allow longer spans.")
        return self._point(path)

    def solve_budget(self, goal: Budget, race: Race | None = None) -> PlanResult:
        """The plan within budgets that a race finds to recover best; without one that of least damage after a refit.

        Args:
            goal: the budgets.
            race: of plans, where the network is recovered afterwards.

        Raises:
            NotReachedError: no plan meets the budgets, by the tables.
        """
        budget = self.meter.plan_budget(goal)
        saved = race.store.shortlist(self.tables.edges) if race is not None else None
        shortlist = saved or ShortlistMaker(self.meter, budget, race).make()
        chosen, check = shortlist.contenders[0], shortlist.check
        outcome: RaceOutcome | None = None
        if race is not None and len(shortlist.contenders) > 1:
            if saved is None:
                race.store.begin(shortlist, self.tables.edges)
            outcome, check = confirmed_winner(self.meter, race.run(shortlist, self.builder), budget)
            chosen = outcome.plan
        reached = check.met if check is not None else budget.is_met(chosen)
        request = "" if reached else f", asked for {100 * budget.latency_ratio:.1f} %"
        result = self._to_result(chosen, shortlist.plans, request=request, outcome=outcome, check=check)
        notes = outcome.notes if outcome is not None else race.notes if race is not None else []
        return replace(result, reached=reached, notes=[*result.notes, *shortlist.notes, *notes])

    def at_index(self, index: int) -> PlanResult:
        """The plan at this index of the front, from 1.

        Raises:
            UsageError: there is no such point.
        """
        plans = self.meter.measure([self._front_path(index)])
        result = self._to_result(plans[0], plans)
        return replace(result, planning=result.planning.model_copy(update={"picked": index}))

    def fastest_within_drop(self, max_drop: float, judge: Judge) -> PlanResult:
        """The fastest plan of the front that loses at most `max_drop` points of the metric on the judge's data.

        The front is searched by halves; each plan looked at is built, refitted and measured. A faster plan seldom loses
        less, so this finds the fastest, or one close by.

        Raises:
            NotReachedError: not even the slowest plan with any change is within it.
        """
        paths = [path for path in self.front if self.builder.actions(path)]  # fastest first
        result: PlanResult | None = None
        chosen: MeasuredPlan | None = None
        low, high, nearest = 0, len(paths), math.inf
        plans: list[MeasuredPlan] = []
        while low < high:
            middle = (low + high) // 2
            self.progress(f"trying plan {middle + 1} of the front", len(plans), max(1, len(paths).bit_length()))
            plans += self.meter.measure([paths[middle]])
            candidate = self._to_result(plans[-1], plans)
            comparison = judge.compare(candidate.model)
            nearest = min(nearest, 100 * metric_drop(comparison))
            if 100 * metric_drop(comparison) <= max_drop + 1e-9:
                result, chosen, high = replace(candidate, validation=comparison), plans[-1], middle
            else:
                low = middle + 1
        if result is None or chosen is None:
            raise NotReachedError(
                f"no plan of the front is within {points_text(max_drop)} on validation; the nearest loses "
                f"{nearest:.2f}",
                "Ask for less, or give more calibration images.",
            )
        # Plans that were tried after it lost too much; the record holds them too.
        planning = result.planning.model_copy(update={"rounds": self._rounds(plans, chosen)})
        message = f"{result.message}, within {points_text(max_drop)} on validation"
        return replace(result, planning=planning, message=message)

    def _front_path(self, index: int) -> Path:
        if not 1 <= index <= len(self.front):
            raise UsageError(f"there is no plan {index} on the front", f"It has {len(self.front)} points, from 1.")
        return self.front[index - 1]

    def _to_result(
        self,
        chosen: MeasuredPlan,
        plans: Sequence[MeasuredPlan],
        *,
        request: str = "",
        outcome: RaceOutcome | None = None,
        check: BudgetCheck | None = None,
    ) -> PlanResult:
        """The chosen plan refitted, or as it came out of its race, with what is known about how it was found."""
        actions = self.builder.actions(chosen.path)
        refined = self._refined(chosen, outcome)
        planning = Planning(
            original_ms=self.tables.whole.latency_ms,
            latency_source=self.backend.source,
            candidates=sum(edge.action != "keep" for edge in self.tables.edges),
            rounds=self._rounds(plans, chosen),
            damage_refitted=refined.refit_damage,
            damage_final=refined.damage,
            front=self.pareto_points(),
            race=outcome.record if outcome is not None else None,
            budget_check=check,
            guess_errors=guess_errors(self.tables, plans),
        )
        summary = summary_of(actions, self.tables.segments)
        return PlanResult(
            refined.network,
            actions,
            planning,
            True,
            f"{summary}; {100 * chosen.latency_ratio:.1f} %{_interval(check)} of the original's "
            f"{self._cost_label}{request}",
            removal_damages={damage.path: damage for damage in self.tables.removal_damages},
            notes=[*self.tables.notes, refined.note],
        )

    @property
    def _cost_label(self) -> str:
        return "MACs" if self.backend.source == EstimatedLatency.source else "latency"

    def _refined(self, chosen: MeasuredPlan, outcome: RaceOutcome | None) -> RefinedPlan:
        """The network that recovery begins with: what the winner of a race has learned, else the plan refitted."""
        if outcome is None or outcome.network is None:
            return self.builder.refine(chosen.path)
        damage = self.builder.damage_of(outcome.network)
        note = (
            f"damage on held-back samples: {chosen.path.damage:.4f} by the table, {chosen.damage:.4f} built, "
            f"{damage:.4f} after the race"
        )
        return RefinedPlan(outcome.network, chosen.least_damage, damage, note)

    def _rounds(self, plans: Sequence[MeasuredPlan], chosen: MeasuredPlan) -> list[PlanRound]:
        """Every plan that was built and measured, in order."""
        whole = self.tables.whole.latency_ms
        rounds = []
        for plan in plans:
            is_chosen = plan.path.edges == chosen.path.edges
            built = (chosen if is_chosen else plan).to_round(whole, chosen=is_chosen)
            rounds.append(built.model_copy(update={"damage_raw": self.tables.guess(plan.path.edges).raw}))
        return rounds

    def _point(self, path: Path) -> FrontPoint:
        actions, fixed = self.builder.actions(path), self.tables.fixed
        return FrontPoint(
            latency_ms=path.latency_ms + fixed.latency_ms,
            damage=path.damage,
            macs=int(path.macs + fixed.macs),
            params=int(path.params + fixed.params),
            removed=[action.name for action in actions if isinstance(action, Remove)],
            replaced=[action.paths for action in actions if isinstance(action, Replace)],
            kinds=[fitted.kind for fitted in self.builder.replacements(path)],
            depth=path.depth + self.tables.fixed_depth,
        )


def _interval(check: BudgetCheck | None) -> str:
    """That of the ratio which a check measured, in per cent."""
    if check is None or not check.worst.rounds:
        return ""
    return f" ({100 * check.worst.low:.1f} to {100 * check.worst.high:.1f})"
