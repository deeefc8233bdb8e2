"""Choose by plan: the path of least damage under a budget, built, measured, corrected, solved again, and refitted.

Neither damages nor latencies really add up. So the best few plans are built and measured end to end; what the tables
were off by corrects them, and the solver looks again, until nothing new comes up.

A damage in the tables is that of one change alone, before a refit and before recovery. What is left of a plan's damage
after them is not the sum: a refit repairs a few large changes better than many small ones, for a network that is whole
behind them learns to take what comes. So plans that are optimal under alternative damage weightings contend too, with
a damage d counted as d^0.6 or d^0.45, or that of a removal discounted; which of these plans is best is measured, after
a refit or a short recovery, not believed. Figures: docs/figures.md.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from shoal.batches import Batch
from shoal.errors import NotReachedError, UsageError
from shoal.measure import compare, predictions
from shoal.pipeline.goals import Budget, ParetoPoint
from shoal.pipeline.greedy import RemovalChoice
from shoal.pipeline.latency_backends import LatencyBackend
from shoal.pipeline.plan_builder import PlanBuilder
from shoal.pipeline.recovery_probe import RecoveryProbe, sentence
from shoal.plan import Edge, Path, Remove, Replace, ResourceLimits, best, front, solve
from shoal.quantities import QUANTITIES, Cost
from shoal.record import Comparison, FrontPoint, Planning, PlanRound, metric_drop
from shoal.replace import SegmentChain
from shoal.scanning import RemovalDamage

Progress = Callable[[str, int, int], None]

DAMAGE_EXPONENTS = (0.6, 0.45)
# What a removal counts for: it leaves whole trained blocks behind, that recover better than they do at first.
REMOVAL_DISCOUNTS = (0.3, 0.1)
# How many plans are built in a round, how often tables are corrected, and up to what factor a budget counts as met.
_PLANS_PER_ROUND = 3
_ROUNDS = 3
_SLACK = 1.01
# At most this many plans are timed for longer, of those that seemed to be within this factor of the budget.
_MAX_RETIMED, _NEAR = 4, 1.03
# How often faster plans are sought, where none was fast enough when timed for longer.
_FASTER_ROUNDS = 2
# This many of the best as built are refitted on a part of the samples before one is chosen, with all alternatives.
_MAX_REFITTED = 2
# Shares of the allowed latency for which alternatives are sought, one after the other.
_LATENCY_SHARES = (1.0, 1.0, 0.96)
_FRONT_POINTS = 24


def concave_damage(edges: Sequence[Edge], exponent: float) -> list[Edge]:
    """The edges with every damage d as d^exponent: below 1, few large ones rather than many small ones."""
    return [edge.model_copy(update={"damage": edge.damage**exponent}) for edge in edges]


def discounted_removals(edges: Sequence[Edge], factor: float) -> list[Edge]:
    """The edges with the damage of every removal multiplied by a factor."""
    return [
        edge.model_copy(update={"damage": factor * edge.damage}) if edge.action == "remove" else edge for edge in edges
    ]


@dataclass(frozen=True)
class PlanResult:
    """The network of the chosen plan and how it was found."""

    model: nn.Module
    actions: list[Remove | Replace]
    planning: Planning
    reached: bool
    message: str
    validation: Comparison | None = None
    removal_damages: dict[str, RemovalDamage] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_choice(self) -> RemovalChoice:
        """In the form the record is made of."""
        return RemovalChoice(
            [action.name for action in self.actions if isinstance(action, Remove)],
            self.removal_damages,
            {},
            self.reached,
            self.message,
            validation=self.validation,
            replaced=[action.paths for action in self.actions if isinstance(action, Replace)],
            planning=self.planning,
        )


@dataclass(frozen=True)
class MeasuredPlan:
    """A plan that was built and measured.

    Args:
        path: with the damage of the tables.
        predicted_ratio: its latency by the tables, as a share of the original's.
        latency_ratio: as measured.
        damage: as built.
        refit_damage: after a refit on a part of the samples; infinite where there was none.
    """

    path: Path
    predicted_ratio: float
    latency_ratio: float
    damage: float
    refit_damage: float = math.inf


@dataclass(frozen=True)
class _PlanBudget:
    """The user's bounds for the whole network as amounts, and as a share of its latency."""

    limits: Cost
    depth: int | None
    latency_ratio: float

    def is_met(self, plan: MeasuredPlan, slack: float = _SLACK) -> bool:
        """Whether the plan is fast enough."""
        return plan.latency_ratio <= self.latency_ratio * slack


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
        self.length = len(self.tables.segments.paths)
        self.front = front(self.tables.edges, self.length, points=_FRONT_POINTS)

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
        budget = self._plan_budget(goal)
        paths = self._next_plans(self.tables.edges, self._path_limits(budget.limits.latency_ms, budget), [])
        if not paths:
            raise NotReachedError(self._unreachable(budget), "Ask for less, or allow longer spans.")
        return self._point(paths[0])

    def solve_budget(self, goal: Budget, probe: RecoveryProbe | None = None) -> PlanResult:
        """The plan of least damage within budgets, after a refit; or of the best few the one that recovers best.

        Args:
            goal: the budgets.
            probe: tells which of the best plans recovers best; None where nothing is recovered.

        Raises:
            NotReachedError: no plan meets the budgets, by the tables.
        """
        budget, removals = self._plan_budget(goal), probe is not None
        plans, latency_ms = self._measure_rounds(budget)
        if not plans:
            raise NotReachedError(self._unreachable(budget), "Ask for less, or allow longer spans.")
        alternatives = self._measure_alternatives(plans, budget, latency_ms, removals=removals)
        plans = self._refit_leading(plans, alternatives, budget)
        chosen, plans = self._retime_leading(plans, budget)
        for _ in range(_FASTER_ROUNDS):
            if not self.backend.measures or budget.is_met(chosen):
                break
            paths = self._tighten_latency(chosen, plans, budget, removals=removals)
            if not paths:
                break
            faster = self._refit_leading(self._build_and_measure(paths), [], budget)
            chosen, plans = self._retime_leading([*plans, *faster], budget)
        notes: list[str] = []
        if probe is not None and probe.plans > 1 and budget.is_met(chosen):
            rest = sorted((plan for plan in plans if plan.path != chosen.path), key=_rank)
            contenders = [plan for plan in rest if budget.is_met(plan) and math.isfinite(plan.refit_damage)]
            chosen, notes = self._select_by_recovery(probe, [chosen, *contenders])
        reached = budget.is_met(chosen)
        request = "" if reached else f", asked for {100 * budget.latency_ratio:.1f} %"
        result = self._to_result(chosen, plans, reached=reached, request=request)
        return replace(result, notes=[*result.notes, *notes])

    def at_index(self, index: int) -> PlanResult:
        """The plan at this index of the front, from 1.

        Raises:
            UsageError: there is no such point.
        """
        plans = self._build_and_measure([self._front_path(index)])
        result = self._to_result(plans[0], plans, reached=True)
        return replace(result, planning=result.planning.model_copy(update={"picked": index}))

    def fastest_within_drop(self, max_drop: float, validation: Sequence[Batch]) -> PlanResult:
        """The fastest plan of the front that loses at most `max_drop` points of the metric on `validation`.

        The front is searched by halves; each plan looked at is built, refitted and measured. A faster plan seldom loses
        less, so this finds the fastest, or one close by.

        Raises:
            NotReachedError: not even the slowest plan with any change is within it.
        """
        reading = self.builder.reading
        original = predictions(self.graph.model, validation, reading=reading)
        paths = [path for path in self.front if self.builder.actions(path)]  # fastest first
        result: PlanResult | None = None
        chosen: MeasuredPlan | None = None
        low, high, nearest = 0, len(paths), math.inf
        plans: list[MeasuredPlan] = []
        while low < high:
            middle = (low + high) // 2
            self.progress(f"trying plan {middle + 1} of the front", len(plans), max(1, len(paths).bit_length()))
            plans += self._build_and_measure([paths[middle]])
            candidate = self._to_result(plans[-1], plans, reached=True)
            comparison = compare(original, predictions(candidate.model, validation, reading=reading), "validation")
            nearest = min(nearest, 100 * metric_drop(comparison))
            if 100 * metric_drop(comparison) <= max_drop + 1e-9:
                result, chosen, high = replace(candidate, validation=comparison), plans[-1], middle
            else:
                low = middle + 1
        if result is None or chosen is None:
            raise NotReachedError(
                f"no plan of the front is within {max_drop:g} points on validation; the nearest loses {nearest:.2f}",
                "Ask for less, or give more calibration images.",
            )
        # Plans that were tried after it lost too much; the record holds them too.
        planning = result.planning.model_copy(update={"rounds": self._rounds(plans, chosen)})
        message = f"{result.message}, within {max_drop:g} points on validation"
        return replace(result, planning=planning, message=message)

    def _front_path(self, index: int) -> Path:
        if not 1 <= index <= len(self.front):
            raise UsageError(f"there is no plan {index} on the front", f"It has {len(self.front)} points, from 1.")
        return self.front[index - 1]

    def _plan_budget(self, goal: Budget) -> _PlanBudget:
        limits = goal.limits(self.tables.whole)
        return _PlanBudget(limits, goal.depth, limits.latency_ms / self.tables.whole.latency_ms)

    def _measure_rounds(self, budget: _PlanBudget) -> tuple[list[MeasuredPlan], float]:
        """The best plans of each round, measured, and the latency by the tables that comes to the one asked for."""
        plans: list[MeasuredPlan] = []
        edges, latency_ms = self.tables.edges, budget.limits.latency_ms
        for index in range(_ROUNDS):
            self.progress(f"plan {index + 1}: solving and measuring", index, _ROUNDS)
            paths = self._next_plans(edges, self._path_limits(latency_ms, budget), [plan.path for plan in plans])
            if not paths:
                break
            fresh = self._build_and_measure(paths)
            plans += fresh
            latency_ms = budget.limits.latency_ms / _latency_bias(fresh)
            edges = self._calibrated_edges(plans)
        return plans, latency_ms

    def _next_plans(self, edges: Sequence[Edge], limits: ResourceLimits | None, built: list[Path]) -> list[Path]:
        """The best few plans that were not built yet; nothing if the best of all was: then the search is stable."""
        if limits is None:
            return []
        if not built:
            return best(edges, self.length, limits, _PLANS_PER_ROUND)
        without = [frozenset(path.edges) for path in built]
        first = solve(edges, self.length, limits)
        if first is None or frozenset(first.edges) in without:
            return []
        paths: list[Path] = []
        while len(paths) < _PLANS_PER_ROUND:
            path = solve(edges, self.length, limits, without=[*without, *(frozenset(path.edges) for path in paths)])
            if path is None:
                break
            paths.append(path)
        return paths

    def _measure_alternatives(
        self, built: Sequence[MeasuredPlan], budget: _PlanBudget, latency_ms: float, *, removals: bool
    ) -> list[MeasuredPlan]:
        """Plans that are optimal under alternative weightings, built and measured; repeatedly, for their latencies.

        Args:
            built: plans that were built before.
            budget: what is asked for.
            latency_ms: the latency by the tables that comes to the one asked for.
            removals: whether plans that favour removal are among them.
        """
        plans: list[MeasuredPlan] = []
        for share in _LATENCY_SHARES:
            paths = [plan.path for plan in (*built, *plans)]
            limits = self._path_limits(share * latency_ms, budget)
            alternatives = self._alternative_objectives(limits, paths, removals=removals)
            if alternatives:
                fresh = self._build_and_measure(alternatives)
                plans += fresh
                latency_ms = budget.limits.latency_ms / _latency_bias(fresh)
        return plans

    def _alternative_objectives(
        self, limits: ResourceLimits | None, built: Sequence[Path], *, removals: bool
    ) -> list[Path]:
        """Plans not built yet that are optimal under alternative damage weightings; `removals`: discounted ones too."""
        if limits is None:
            return []
        weightings = [concave_damage(self.tables.edges, exponent) for exponent in DAMAGE_EXPONENTS]
        if removals:
            weightings += [discounted_removals(self.tables.edges, factor) for factor in REMOVAL_DISCOUNTS]
        paths: dict[tuple[int, ...], Path] = {}
        for edges in weightings:
            path = solve(edges, self.length, limits)
            if path is not None and all(path.edges != previous.edges for previous in built):
                paths.setdefault(path.edges, path)
        return list(paths.values())

    def _tighten_latency(
        self, slow: MeasuredPlan, plans: Sequence[MeasuredPlan], budget: _PlanBudget, *, removals: bool
    ) -> list[Path]:
        """Plans not built yet, for the latency by the tables that is right according to a plan timed for longer."""
        limits = self._path_limits(budget.limits.latency_ms / _latency_bias([slow]), budget)
        built = [plan.path for plan in plans]
        solved = self._next_plans(self._calibrated_edges(plans), limits, built)
        return [*solved, *self._alternative_objectives(limits, [*built, *solved], removals=removals)]

    def _refit_leading(
        self, plans: Sequence[MeasuredPlan], alternatives: Sequence[MeasuredPlan], budget: _PlanBudget
    ) -> list[MeasuredPlan]:
        """All of them, the alternatives and the best few of the others with their damage after a refit on a part.

        A refit changes the order of plans: it repairs a few large changes better than many small ones.
        """
        leading = [plan for plan in sorted(plans, key=_rank) if budget.is_met(plan, _NEAR)][:_MAX_REFITTED]
        leading += [plan for plan in alternatives if budget.is_met(plan, _NEAR)]
        if len(leading) < 2 or not self.builder.actions(leading[0].path):
            return [*plans, *alternatives]
        damages: dict[tuple[int, ...], float] = {}
        for index, plan in enumerate(leading):
            self.progress("refitting the best plans on a part", index, len(leading))
            refitted = self.builder.quick_refit(plan.path)
            damages[plan.path.edges] = min(plan.damage, self.builder.damage_of(refitted))
        return [replace(plan, refit_damage=damages.get(plan.path.edges, math.inf)) for plan in (*plans, *alternatives)]

    def _select_by_recovery(
        self, probe: RecoveryProbe, contenders: Sequence[MeasuredPlan]
    ) -> tuple[MeasuredPlan, list[str]]:
        """Of the first few the one that a short recovery leaves nearest to the original, and a note on it."""
        plans = contenders[: probe.plans]
        if len(plans) < 2:
            return plans[0], []
        outcomes = []
        for index, plan in enumerate(plans):
            self.progress("trying how well plans recover", index, len(plans))
            actions = self.builder.actions(plan.path)
            divergence = probe.recovered(self.builder.quick_refit(plan.path), actions)
            outcomes.append((actions, min(plan.refit_damage, plan.damage), divergence))
        least = min(range(len(outcomes)), key=lambda index: outcomes[index][2])
        return plans[least], [sentence(probe, outcomes, least)]

    def _build_and_measure(self, paths: Sequence[Path]) -> list[MeasuredPlan]:
        """Build plans and measure them, all interleaved."""
        networks = [self.builder.network(path) for path in paths]
        whole = self.tables.whole.latency_ms
        predicted = [(path.latency_ms + self.tables.fixed.latency_ms) / whole for path in paths]
        ratios = self._latency_ratios(networks) if self.backend.measures else predicted
        damages = [self.builder.damage_of(network) for network in networks]
        return [
            MeasuredPlan(self._with_table_damage(path), *figures)
            for path, *figures in zip(paths, predicted, ratios, damages, strict=True)
        ]

    def _latency_ratios(self, networks: Sequence[nn.Module], *, precise: bool = False) -> list[float]:
        """Measured, to the original."""
        models = {str(index): network for index, network in enumerate(networks)}
        times = self.backend.time_models({"whole": self.graph.model, **models}, precise=precise)
        return [times[name] / times["whole"] for name in models]

    def _retime_leading(
        self, plans: list[MeasuredPlan], budget: _PlanBudget
    ) -> tuple[MeasuredPlan, list[MeasuredPlan]]:
        """The plan of least damage that is fast enough when it is timed for longer; else the fastest.

        Of many plans timed shortly the one that seems fast enough may only have been lucky.
        """
        fastest = min(plans, key=lambda plan: plan.latency_ratio)
        if not self.backend.measures or not math.isfinite(budget.latency_ratio):
            return min((plan for plan in plans if budget.is_met(plan)), key=_rank, default=fastest), plans
        leading = sorted((plan for plan in plans if budget.is_met(plan, _NEAR)), key=_rank)[:_MAX_RETIMED]
        if not any(plan is fastest for plan in leading):
            leading.append(fastest)
        self.progress("timing the best plans for longer", 0, 1)
        ratios = self._latency_ratios([self.builder.network(plan.path) for plan in leading], precise=True)
        retimed = [replace(plan, latency_ratio=ratio) for plan, ratio in zip(leading, ratios, strict=True)]
        fastest = min(retimed, key=lambda plan: plan.latency_ratio)
        chosen = min((plan for plan in retimed if budget.is_met(plan)), key=_rank, default=fastest)
        by_path = {plan.path.edges: plan for plan in retimed}
        return chosen, [by_path.get(plan.path.edges, plan) for plan in plans]

    def _with_table_damage(self, path: Path) -> Path:
        """A path with the damage of the tables, not of the calibrated ones."""
        return path.model_copy(update={"damage": sum(self.tables.edges[index].damage for index in path.edges)})

    def _calibrated_edges(self, plans: Sequence[MeasuredPlan]) -> list[Edge]:
        """Edges of plans that were worse than promised, against the other plans, count for more; and the reverse."""
        errors = [math.log(max(plan.damage, 1e-9) / max(plan.path.damage, 1e-9)) for plan in plans]
        mean = sum(errors) / len(errors)
        edges = list(self.tables.edges)
        for index in {index for plan in plans for index in plan.path.edges}:
            excess = [error - mean for plan, error in zip(plans, errors, strict=True) if index in plan.path.edges]
            factor = math.exp(sum(excess) / len(excess))
            edges[index] = edges[index].model_copy(update={"damage": edges[index].damage * factor})
        return edges

    def _path_limits(self, latency_ms: float, budget: _PlanBudget) -> ResourceLimits | None:
        """What remains for the path; None where the rest of the network takes more than all of it."""
        remaining: dict[str, Any] = {}
        limits = replace(budget.limits, latency_ms=latency_ms)
        for quantity in QUANTITIES.values():
            limit, fixed = quantity.of(limits), quantity.of(self.tables.fixed)
            if limit < fixed:
                return None
            remaining[quantity.attribute] = None if limit == math.inf else limit - fixed
        if budget.depth is not None:
            if budget.depth < self.tables.fixed_depth:
                return None
            remaining["depth"] = float(budget.depth - self.tables.fixed_depth)
        return ResourceLimits(**remaining)

    def _to_result(
        self, chosen: MeasuredPlan, plans: Sequence[MeasuredPlan], *, reached: bool, request: str = ""
    ) -> PlanResult:
        """The chosen plan refitted, with what is known about how it was found."""
        actions = self.builder.actions(chosen.path)
        refined = self.builder.refine(chosen.path)
        planning = Planning(
            original_ms=self.tables.whole.latency_ms,
            latency_source=self.backend.source,
            candidates=sum(edge.action != "keep" for edge in self.tables.edges),
            rounds=self._rounds(plans, chosen),
            damage_refitted=refined.refit_damage,
            damage_final=refined.damage,
            front=self.pareto_points(),
        )
        summary = _summary(actions, self.tables.segments)
        return PlanResult(
            refined.network,
            actions,
            planning,
            reached,
            f"{summary}; {100 * chosen.latency_ratio:.1f} % of the original's latency{request}",
            removal_damages={damage.path: damage for damage in self.tables.removal_damages},
            notes=[*self.tables.notes, refined.note],
        )

    def _rounds(self, plans: Sequence[MeasuredPlan], chosen: MeasuredPlan) -> list[PlanRound]:
        """Every plan that was built and measured, in order."""
        whole = self.tables.whole.latency_ms
        return [
            PlanRound(
                latency_guessed_ms=plan.predicted_ratio * whole,
                latency_measured_ms=plan.latency_ratio * whole,
                damage_guessed=plan.path.damage,
                damage_measured=plan.damage,
                damage_refitted=plan.refit_damage if math.isfinite(plan.refit_damage) else None,
                chosen=plan is chosen,
            )
            for plan in plans
        ]

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

    def _unreachable(self, budget: _PlanBudget) -> str:
        reachable = []
        for quantity in QUANTITIES.values():
            if quantity.of(budget.limits) < math.inf:
                [path] = best(self.tables.edges, self.length, ResourceLimits(), 1, objective=quantity.attribute)
                total = getattr(path, quantity.attribute) + quantity.of(self.tables.fixed)
                share = 100 * total / quantity.of(self.tables.whole)
                reachable.append(f"at least {share:.0f} % of the original's {quantity.label}")
        if budget.depth is not None:
            [shallowest] = best(self.tables.edges, self.length, ResourceLimits(), 1, objective="depth")
            counted = "units" if self.tables.units_by_edge else "blocks"
            reachable.append(f"at least {shallowest.depth + self.tables.fixed_depth} {counted}")
        return "no plan meets the budget" + (f": by the tables, each has {', '.join(reachable)}" if reachable else "")


def _latency_bias(plans: Sequence[MeasuredPlan]) -> float:
    """By what factor the tables predict latencies too low: the middle one of these plans."""
    return sorted(plan.latency_ratio / plan.predicted_ratio for plan in plans)[len(plans) // 2]


def _rank(plan: MeasuredPlan) -> tuple[float, float]:
    """By the damage that a refit leaves, where it is known; all others behind, as they were built."""
    return plan.refit_damage, plan.damage


def _summary(actions: Sequence[Remove | Replace], segments: SegmentChain) -> str:
    """What a plan does, in a few words."""
    removals = [action for action in actions if isinstance(action, Remove)]
    units = sum(action.unit is not None for action in removals)
    removed = len(removals) - units
    spans = [action for action in actions if isinstance(action, Replace)]
    paths = {path for span in spans for path in span.paths}
    covered = [segment for segment in segments.segments if segment.can_bound_span and segment.path in paths]
    changes = [f"{removed} blocks removed"] if removed else []
    changes += [f"{units} single {'unit' if units == 1 else 'units'} removed"] if units else []
    if spans:
        what = "blocks" if covered[0].residual else "layers"
        changes.append(f"{len(covered)} {what} replaced by {len(spans)} stand-ins")
    return ", ".join(changes) or "nothing changed"
