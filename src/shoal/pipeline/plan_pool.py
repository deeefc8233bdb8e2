"""A pool of plans under one budget that are unlike each other, so that what recovers best can be among them.

A damage in the tables is that of one change alone, after a refit of the next maps and before recovery. What is left of
a plan's damage after recovery is not the sum: a few large changes recover better than many small ones, and whole
trained blocks that remain behind removals better than they do at first. So the solver is asked with damage counted in
several ways, by turns; each time the changes that the pool holds already count for more, so that the next plan is
another one. Plans by rules that only remove are always among them. Which plan is best is measured, not believed.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice, zip_longest
from operator import ne

from shoal.batches import Batch
from shoal.pipeline.plan_baselines import BASELINES, Baselines
from shoal.pipeline.plan_measure import NEAR, Family, MeasuredPlan, PlanBudget, PlanMeter, latency_bias
from shoal.plan import Edge, Path, ResourceLimits, best, solve
from shoal.record import PlanOrigin

# The ways of counting damage, in turns: to what power it is raised, and what a removal counts for.
GENERATORS: tuple[tuple[float, float], ...] = ((1.0, 1.0), (0.6, 1.0), (0.45, 1.0), (1.0, 0.3))
_WITHOUT_RECOVERY = 3  # of the generators: without recovery, removals count in full
# What a change counts for more, for each plan of the pool that has it already, as a share of itself.
_REUSE = 0.5
# How many plans are built in a round, how often tables are corrected by them.
_PLANS_PER_ROUND, _ROUNDS = 3, 3
# How often the pool is filled up where plans proved too slow, and a rule is tried again.
_MAX_FILLS, _MAX_TRIES = 3, 3
# For each plan that is missing, so often is the solver asked for one that is unlike all others.
_MAX_QUESTIONS = 3
# In how many blocks two plans of the solver have to differ, as a share of all blocks.
_MIN_DISTANCE = 0.06


def weighted(edges: Sequence[Edge], exponent: float, removal: float, reused: Counter[int]) -> list[Edge]:
    """The edges with damage d as d^exponent, removals times a factor, more for each plan that has them already."""
    return [
        edge.model_copy(
            update={
                "damage": edge.damage**exponent
                * (removal if edge.action == "remove" else 1.0)
                * (1 + _REUSE * reused[index])
            }
        )
        for index, edge in enumerate(edges)
    ]


@dataclass
class PlanPool:
    """Plans under one budget, built and measured.

    Args:
        meter: builds and measures.
        budget: what all have to meet.
        recovery: whether a network is recovered afterwards; else nothing makes up for what a removal costs at first.
        samples: calibration mini-batches, for the rules that look at activations.
    """

    meter: PlanMeter
    budget: PlanBudget
    recovery: bool = False
    samples: Sequence[Batch] = ()
    plans: list[MeasuredPlan] = field(default_factory=list, init=False)
    notes: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.latency_ms = self.budget.limits.latency_ms  # by the tables, what comes to the latency asked for

    @property
    def generators(self) -> range:
        """The solver's ways of counting damage that are of use here."""
        return range(len(GENERATORS) if self.recovery else _WITHOUT_RECOVERY)

    def solve_rounds(self) -> None:
        """The best plans by the tables, built and measured; what the tables were off by corrects them, repeatedly."""
        edges: Sequence[Edge] = self.meter.tables.edges
        for index in range(_ROUNDS):
            self.meter.progress(f"plan {index + 1}: solving and measuring", index, _ROUNDS)
            if not self._measured(self._next_plans(edges)):
                break
            edges = self.meter.calibrated_edges(self.plans)

    def fill(self, size: int) -> None:
        """Plans by rules that only remove, where there is recovery, and others of the solver, up to `size` in all."""
        if self.recovery:
            self._add_baselines()
        self._measured(*self._others(self.generators[1:]))  # each way of counting is heard, whatever the size
        for _ in range(_MAX_FILLS):
            missing = size - len(self.contenders(size))
            if missing <= 0:
                break
            self.meter.progress("building a pool of plans", size - missing, size)
            if not self._measured(*self._others(list(islice(cycle(self.generators), missing)))):
                break

    def tighten(self, slow: MeasuredPlan) -> list[MeasuredPlan]:
        """More plans, for the latency by the tables that is right according to a plan timed for longer."""
        self.latency_ms = self.budget.limits.latency_ms / latency_bias([slow])
        solved = self._next_plans(self.meter.calibrated_edges(self.plans))
        others, families = self._others(self.generators, solved)
        return self._measured([*solved, *others], [*[_BEST for _ in solved], *families])

    def contenders(self, size: int) -> list[MeasuredPlan]:
        """At most `size` plans near the budget or within it, unlike each other: by turns the best of each family.

        Never the best of all by damage: between families it says nothing about what is left after recovery. Of a rule
        all plans come one after the other, the largest first: the next counts where it proves too slow.
        """
        families: dict[Family, list[MeasuredPlan]] = {}
        kept: list[Path] = []
        near = (plan for plan in self.plans if self.budget.is_met(plan, NEAR))
        for plan in sorted(near, key=lambda plan: plan.rank):
            if plan.origin != "solver" or self._is_unlike(plan.path, kept):
                families.setdefault(plan.family, []).append(plan)
                kept.append(plan.path)
        solver = [[[plan] for plan in families[family]] for family in sorted(families) if family[0] == "solver"]
        rules = [
            [sorted(families[origin, 0], key=lambda plan: -plan.latency_ratio)]
            for origin in BASELINES
            if (origin, 0) in families
        ]
        groups = [group for pair in zip_longest(solver, rules) for group in pair if group]
        turns = (plan for turn in zip_longest(*groups) for plans in turn for plan in plans or ())
        return list(islice(turns, size))

    def update(self, plans: Sequence[MeasuredPlan]) -> None:
        """Put newer measurements in the place of older ones of the same plans."""
        by_path = {plan.path.edges: plan for plan in plans}
        self.plans = [by_path.get(plan.path.edges, plan) for plan in self.plans]

    def _measured(self, paths: Sequence[Path], families: Sequence[Family] = ()) -> list[MeasuredPlan]:
        """Paths built and measured; by how much the tables were off, the next ones are solved for another latency."""
        fresh = self.meter.measure(paths, families)
        if fresh:
            self.plans += fresh
            self.latency_ms = self.budget.limits.latency_ms / latency_bias(fresh)
        return fresh

    def _limits(self, latency_ms: float) -> ResourceLimits | None:
        return self.meter.path_limits(latency_ms, self.budget)

    def _next_plans(self, edges: Sequence[Edge]) -> list[Path]:
        """The best few plans that were not built yet; nothing if the best of all was: then the search is stable."""
        limits, length = self._limits(self.latency_ms), self.meter.length
        pairs = self.meter.tables.pairs
        if limits is None:
            return []
        if not self.plans:
            return best(edges, length, limits, _PLANS_PER_ROUND, pairs=pairs)
        without = [frozenset(plan.path.edges) for plan in self.plans]
        path = solve(edges, length, limits, pairs=pairs)
        if path is None or frozenset(path.edges) in without:
            return []
        paths: list[Path] = []
        while path is not None and len(paths) < _PLANS_PER_ROUND:
            paths.append(path)
            without.append(frozenset(path.edges))
            path = solve(edges, length, limits, without=without, pairs=pairs)
        return paths

    def _others(self, generators: Sequence[int], solved: Sequence[Path] = ()) -> tuple[list[Path], list[Family]]:
        """Plans of the solver unlike those of the pool, up to one for each of these ways of counting damage.

        Args:
            generators: by turns, repeatedly.
            solved: more plans that they are to be unlike.
        """
        limits = self._limits(self.latency_ms)
        paths: list[Path] = []
        families: list[Family] = []
        known = [*(plan.path for plan in self.plans), *solved]
        for generator in islice(cycle(generators), _MAX_QUESTIONS * len(generators)):
            if limits is None or len(paths) == len(generators):
                break
            reused = Counter(index for path in known for index in path.edges)
            edges = weighted(self.meter.tables.edges, *GENERATORS[generator], reused)
            without = list({frozenset(path.edges) for path in known})
            path = solve(edges, self.meter.length, limits, without=without)
            if path is None:
                break
            if self._is_unlike(path, known):
                paths.append(path)
                families.append(("solver", generator))
            known.append(path)
        return paths, families

    def _is_unlike(self, path: Path, others: Sequence[Path]) -> bool:
        """Whether it does something else than each of the others in enough blocks."""
        least = max(1, round(_MIN_DISTANCE * self.meter.length))
        changes = self._changes(path)
        return all(sum(map(ne, changes, self._changes(other))) >= least for other in others)

    def _changes(self, path: Path) -> list[tuple[int, int, str]]:
        """What becomes of each block: from where to where, and how."""
        edges = (self.meter.tables.edges[index] for index in path.edges)
        return [
            (edge.start, edge.stop, edge.action + (edge.kind if edge.action == "remove" else ""))
            for edge in edges
            for _ in range(edge.start, edge.stop)
        ]

    def _add_baselines(self) -> None:
        """The plans by rules that only remove; one that proves too slow removes more, one that leaves time less."""
        baselines = Baselines(self.meter.graph, self.meter.tables, self.samples)
        if not baselines.removals:
            self.notes.append("no block can be removed: no plan of removals alone is among those that were compared")
            return
        latencies = dict.fromkeys(BASELINES, self.latency_ms)
        near: dict[PlanOrigin, list[MeasuredPlan]] = {}
        tried: dict[tuple[int, ...], PlanOrigin] = {}
        missing: dict[PlanOrigin, str] = {}
        for _ in range(_MAX_TRIES):
            paths: dict[PlanOrigin, Path] = {}
            for origin, latency_ms in latencies.items():
                path = self._baseline(baselines, origin, latency_ms, tried)
                if isinstance(path, Path):
                    paths[origin], tried[path.edges] = path, origin
                    missing[origin] = "was not compared: it proved too slow"
                elif path:
                    missing[origin] = path
            measured = self.meter.measure(list(paths.values()), [(origin, 0) for origin in paths])
            for plan in measured:
                if self.budget.is_met(plan, NEAR):
                    near.setdefault(plan.origin, []).append(plan)
            latencies = {
                plan.origin: self.budget.limits.latency_ms / latency_bias([plan])
                for plan in measured
                if not (self.budget.is_met(plan) and self.budget.is_used(plan))
            }
            if not latencies:
                break
        for plans in near.values():
            used = [plan for plan in plans if self.budget.is_used(plan)]
            self.plans += used or [max(plans, key=lambda plan: plan.latency_ratio)]
        self.notes += [f"the plan '{origin}' {why}" for origin, why in missing.items() if origin not in near]

    def _baseline(
        self, baselines: Baselines, origin: PlanOrigin, latency_ms: float, tried: Mapping[tuple[int, ...], PlanOrigin]
    ) -> Path | str:
        """The plan of a rule, where it is not known under another name; else why there is none, if that is news."""
        limits = self._limits(latency_ms)
        path = baselines.path(origin, limits) if limits is not None else None
        if path is None:
            return "was not compared: removing every block does not meet the budget"
        same = {**{plan.path.edges: plan.origin for plan in self.plans}, **tried}.get(path.edges)
        if same is None:
            return path
        if same == "solver":  # it counts as that of the rule, so that the rule is always among the contenders
            self.plans = [
                replace(plan, origin=origin, generator=0) if plan.path.edges == path.edges else plan
                for plan in self.plans
            ]
        return "" if same in ("solver", origin) else f"is that of '{same}'"


_BEST: Family = ("solver", 0)
