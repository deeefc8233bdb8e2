"""Plans built and measured end to end: their share of the original's latency, their damage, and that after a refit.

Neither damages nor latencies really add up: what the tables were off by corrects them for the next search.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from shoal.pipeline.budget_check import MIN_USED, check_budget
from shoal.pipeline.goals import Budget
from shoal.pipeline.latency_backends import WHOLE, LatencyBackend
from shoal.pipeline.plan_builder import PlanBuilder
from shoal.plan import Edge, Path, ResourceLimits, best
from shoal.quantities import QUANTITIES, Cost
from shoal.record import BudgetCheck, PlanOrigin, PlanRound

# Up to what factor a budget counts as met, and up to what factor a plan timed shortly may still turn out to meet it.
SLACK, NEAR = 1.01, 1.03

Family = tuple[PlanOrigin, int]
"""What made a plan, and by which of the solver's ways of counting damage."""


@dataclass(frozen=True)
class MeasuredPlan:
    """A plan that was built and measured.

    Args:
        path: with the damage of the tables.
        predicted_ratio: its latency by the tables, as a share of the original's.
        latency_ratio: as measured.
        damage: as built.
        refit_damage: after a refit on a part of the samples; infinite where there was none.
        origin: what it was made by.
        generator: which of the solver's ways of counting damage it is optimal for.
    """

    path: Path
    predicted_ratio: float
    latency_ratio: float
    damage: float
    refit_damage: float = math.inf
    origin: PlanOrigin = "solver"
    generator: int = 0

    @property
    def least_damage(self) -> float:
        """After the refit, or as built where there was none."""
        return min(self.refit_damage, self.damage)

    @property
    def rank(self) -> tuple[float, float]:
        """By the damage that a refit leaves, where it is known; all others behind, as they were built."""
        return self.refit_damage, self.damage

    @property
    def family(self) -> Family:
        """Plans are comparable by damage only within a family: what is left after recovery differs between them."""
        return self.origin, self.generator

    def to_round(self, original_ms: float, *, chosen: bool) -> PlanRound:
        """As the record holds it."""
        return PlanRound(
            latency_guessed_ms=self.predicted_ratio * original_ms,
            latency_measured_ms=self.latency_ratio * original_ms,
            damage_guessed=self.path.damage,
            damage_measured=self.damage,
            damage_refitted=self.refit_damage if math.isfinite(self.refit_damage) else None,
            chosen=chosen,
            origin=self.origin,
        )


@dataclass(frozen=True)
class PlanBudget:
    """The user's bounds for the whole network as amounts, and as a share of its latency."""

    limits: Cost
    depth: int | None
    latency_ratio: float

    def is_met(self, plan: MeasuredPlan, slack: float = SLACK) -> bool:
        """Whether the plan is fast enough; the other bounds hold for every path that was solved for."""
        return plan.latency_ratio <= self.latency_ratio * slack

    def is_used(self, plan: MeasuredPlan) -> bool:
        """Whether the plan leaves little of the latency that is allowed; what leaves more has removed too much."""
        return math.isinf(self.latency_ratio) or plan.latency_ratio >= self.latency_ratio * MIN_USED


def latency_bias(plans: Sequence[MeasuredPlan]) -> float:
    """By what factor the tables predict latencies too low: the middle one of these plans."""
    ratios = sorted(plan.latency_ratio / plan.predicted_ratio for plan in plans if plan.predicted_ratio > 0)
    return ratios[len(ratios) // 2] if ratios else 1.0  # a table may say that what is left takes no time


@dataclass
class PlanMeter:
    """Builds plans and measures them.

    Args:
        builder: makes networks of plans, from the tables.
        backend: where latencies come from.
    """

    builder: PlanBuilder
    backend: LatencyBackend

    def __post_init__(self) -> None:
        self.graph, self.tables, self.progress = self.builder.graph, self.builder.tables, self.builder.progress
        self.length = len(self.tables.segments.paths)

    def plan_budget(self, goal: Budget) -> PlanBudget:
        """The bounds of a goal as amounts."""
        limits = goal.limits(self.tables.whole)
        return PlanBudget(limits, goal.depth, limits.latency_ms / self.tables.whole.latency_ms)

    def measure(self, paths: Sequence[Path], families: Sequence[Family] = ()) -> list[MeasuredPlan]:
        """Build plans and measure them, all interleaved; by default they are the solver's best."""
        if not paths:
            return []
        networks = [self.builder.network(path) for path in paths]
        predicted = [self.predicted_ratio(path) for path in paths]
        ratios = self._latency_ratios(networks) if self.backend.measures else predicted
        damages = [self.builder.damage_of(network) for network in networks]
        plans = [
            MeasuredPlan(self._with_table_damage(path), guessed, ratio, damage)
            for path, guessed, ratio, damage in zip(paths, predicted, ratios, damages, strict=True)
        ]
        if not families:
            return plans
        return [
            replace(plan, origin=origin, generator=generator)
            for plan, (origin, generator) in zip(plans, families, strict=True)
        ]

    def predicted_ratio(self, path: Path) -> float:
        """The latency of a plan by the tables, as a share of the original's; of several batch sizes the worst."""
        whole, fixed = self.tables.whole, self.tables.fixed
        parts = zip(
            (path.latency_ms, *path.latencies),
            (fixed.latency_ms, *fixed.latencies),
            (whole.latency_ms, *whole.latencies),
            strict=True,
        )
        return max((ms + fixed_ms) / whole_ms for ms, fixed_ms, whole_ms in parts)

    def can_check(self, budget: PlanBudget) -> bool:
        """Whether there is a budget of latency, and networks can be timed."""
        return self.backend.measures and math.isfinite(budget.latency_ratio)

    def check(self, plan: MeasuredPlan, budget: PlanBudget) -> BudgetCheck:
        """Whether a plan meets the budget of latency, in a run of its own."""
        self.progress("timing the chosen plan once more", 0, 1)
        return check_budget(self.backend, self.graph.model, self.builder.network(plan.path), budget.latency_ratio)

    def retimed(self, plans: Sequence[MeasuredPlan]) -> list[MeasuredPlan]:
        """The same plans timed for longer: of many that are timed shortly some only seem to be fast enough."""
        if not self.backend.measures or not plans:
            return list(plans)
        self.progress("timing the best plans for longer", 0, 1)
        ratios = self._latency_ratios([self.builder.network(plan.path) for plan in plans], precise=True)
        return [replace(plan, latency_ratio=ratio) for plan, ratio in zip(plans, ratios, strict=True)]

    def refitted(self, plans: Sequence[MeasuredPlan]) -> list[MeasuredPlan]:
        """The same plans with their damage after a refit on a part of the samples.

        A refit changes the order of plans: it repairs a few large changes better than many small ones.
        """
        refitted = []
        for index, plan in enumerate(plans):
            self.progress("refitting plans on a part", index, len(plans))
            damage = self.builder.damage_of(self.builder.quick_refit(plan.path))
            refitted.append(replace(plan, refit_damage=min(plan.damage, damage)))
        return refitted

    def path_limits(self, latency_ms: float, budget: PlanBudget) -> ResourceLimits | None:
        """What remains for the path; None where the rest of the network takes more than all of it."""
        remaining: dict[str, Any] = {}
        limits = replace(budget.limits, latency_ms=latency_ms)
        for quantity in QUANTITIES.values():
            limit, fixed = quantity.of(limits), quantity.of(self.tables.fixed)
            if limit < fixed:
                return None
            remaining[quantity.attribute] = None if limit == math.inf else limit - fixed
        if math.isfinite(latency_ms):
            share = latency_ms / budget.limits.latency_ms
            further = zip(budget.limits.latencies, self.tables.fixed.latencies, strict=True)
            remaining["latencies"] = tuple(share * limit - fixed for limit, fixed in further)
            if any(limit < 0 for limit in remaining["latencies"]):
                return None
        if budget.depth is not None:
            if budget.depth < self.tables.fixed_depth:
                return None
            remaining["depth"] = float(budget.depth - self.tables.fixed_depth)
        return ResourceLimits(**remaining)

    def calibrated_edges(self, plans: Sequence[MeasuredPlan]) -> list[Edge]:
        """Edges of plans that were worse than promised, against the other plans, count for more; and the reverse.

        Plans as they were built are compared with damages as they are without a refit.
        """
        promised = [self.tables.guess(plan.path.edges).raw for plan in plans]
        errors = [
            math.log(max(plan.damage, 1e-9) / max(damage, 1e-9)) for plan, damage in zip(plans, promised, strict=True)
        ]
        mean = sum(errors) / len(errors)
        edges = list(self.tables.edges)
        for index in {index for plan in plans for index in plan.path.edges}:
            excess = [error - mean for plan, error in zip(plans, errors, strict=True) if index in plan.path.edges]
            factor = math.exp(sum(excess) / len(excess))
            edges[index] = edges[index].model_copy(update={"damage": edges[index].damage * factor})
        return edges

    def unreachable(self, budget: PlanBudget) -> str:
        """Why no plan meets a budget: what the tables say can be reached."""
        reachable = []
        for quantity in QUANTITIES.values():
            if quantity.of(budget.limits) < math.inf:
                [path] = best(self.tables.edges, self.length, ResourceLimits(), 1, objective=quantity.attribute)
                total = getattr(path, quantity.attribute) + quantity.of(self.tables.fixed)
                share = total / quantity.of(self.tables.whole)
                if quantity.name == "latency":
                    share = self.predicted_ratio(path)
                reachable.append(f"at least {100 * share:.0f} % of the original's {quantity.label}")
        if budget.depth is not None:
            [shallowest] = best(self.tables.edges, self.length, ResourceLimits(), 1, objective="depth")
            counted = "units" if self.tables.units_by_edge else "blocks"
            reachable.append(f"at least {shallowest.depth + self.tables.fixed_depth} {counted}")
        return "no plan meets the budget" + (f": by the tables, each has {', '.join(reachable)}" if reachable else "")

    def _latency_ratios(self, networks: Sequence[nn.Module], *, precise: bool = False) -> list[float]:
        """Measured, to the original."""
        models = {str(index): network for index, network in enumerate(networks)}
        ratios = self.backend.time_ratios({WHOLE: self.graph.model, **models}, "long" if precise else "short")
        return [ratios[name].ratio for name in models]

    def _with_table_damage(self, path: Path) -> Path:
        """A path with the damage of the tables, not of edges that were weighted otherwise."""
        return path.model_copy(update={"damage": self.tables.guess(path.edges).corrected})
