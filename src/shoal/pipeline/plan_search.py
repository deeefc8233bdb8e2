"""Choose by plan: the path of least damage under a budget, built, measured, corrected, solved again, and refitted.

Neither damages nor latencies really add up. So the best few plans are built and measured end to end; what the tables
were off by corrects them, and the solver looks again, until nothing new comes up.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from shoal.batches import Batch
from shoal.errors import NotReachedError, UsageError
from shoal.measure import compare, predictions
from shoal.pipeline.damage_weightings import FACTORS, POWERS, concave_damage, discounted_removals
from shoal.pipeline.goals import Budget, ParetoPoint
from shoal.pipeline.greedy import RemovalChoice
from shoal.pipeline.latency_backends import LatencyBackend
from shoal.pipeline.plan_builder import PlanBuilder
from shoal.pipeline.recovery_probe import RecoveryProbe, sentence
from shoal.plan import Edge, Path, Remove, Replace, ResourceLimits, best, front, solve
from shoal.plan.solver import Objective
from shoal.quantities import Cost
from shoal.record import Comparison, FrontPoint, Planning, PlanRound, metric_drop
from shoal.replace import SegmentChain
from shoal.scanning import RemovalDamage

Progress = Callable[[str, int, int], None]

# How many plans are built in a round, how often tables are corrected, and what still counts as met.
_BUILT = 3
_ROUNDS = 3
_SLACK = 1.01
# So many plans, at most, are timed for longer, out of those that seemed to be within this factor of the budget.
_CONFIRMED, _NEAR = 4, 1.03
# So often it is looked for faster plans, where none was fast enough when timed for longer.
_AGAIN = 2
# So many of the best as built are refitted on a part of the samples before one is chosen, beside all bent ones.
_REFITTED = 2
# Shares of the latency that is believed to be right, for which plans are looked for where damages count otherwise.
_TIGHTER = (1.0, 1.0, 0.96)
# Points on the front.
_POINTS = 24
_QUANTITIES: dict[Objective, str] = {
    "latency_ms": "the fastest takes",
    "macs": "the one with the fewest MACs has",
    "params": "the smallest has",
}


@dataclass(frozen=True)
class PlanResult:
    """The network of the chosen plan and how it was found."""

    model: nn.Module
    actions: list[Remove | Replace]
    planning: Planning
    reached: bool
    message: str
    validation: Comparison | None = None
    worths: dict[str, RemovalDamage] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Tried:
    """A plan that was built and measured; `mended` is its damage after a refit on a part of the samples."""

    path: Path
    guessed_share: float
    share: float
    damage: float
    mended: float = math.inf


@dataclass
class PlanSearch:
    """Everything planning needs.

    Args:
        builder: makes networks of plans, from the tables.
        clock: tells latencies.
    """

    builder: PlanBuilder
    clock: LatencyBackend

    def __post_init__(self) -> None:
        self.anatomy, self.tables, self.progress = self.builder.anatomy, self.builder.tables, self.builder.progress
        if not self.tables.line.paths:
            note = self.anatomy.chain.note or "no block of the network can be taken out"
            raise NotReachedError(note, "`shoal trace` gives the reason for each block.")
        self.length = len(self.tables.line.paths)
        self.front = front(self.tables.edges, self.length, points=_POINTS)

    def points(self) -> list[FrontPoint]:
        """The front, fastest first."""
        return [self._point(path) for path in self.front]

    def guessed(self, goal: Budget | ParetoPoint) -> FrontPoint:
        """The plan of least damage within budgets, or that with a number on the front, by the tables alone.

        Raises:
            NotReachedError: no plan meets the budgets.
            UsageError: there is no such point.
        """
        if isinstance(goal, ParetoPoint):
            return self._point(self._numbered(goal.index))
        limits = goal.limits(self.tables.whole)
        found = self._solved(self.tables.edges, self._budget(limits.latency_ms, limits, goal.depth), [])
        if not found:
            raise NotReachedError(self._unreachable(limits, goal.depth), "Ask for less, or allow longer spans.")
        return self._point(found[0])

    def within(self, target: Budget, trial: RecoveryProbe | None = None) -> PlanResult:
        """The plan of least damage within budgets, after a refit; or of the best few the one that recovers best.

        Args:
            target: the budgets.
            trial: how it is told which recovers best; None where nothing is recovered.

        Raises:
            NotReachedError: no plan meets the budgets, by the tables.
        """
        whole, limits = self.tables.whole, target.limits(self.tables.whole)
        tried: list[_Tried] = []
        edges, allowed = self.tables.edges, limits.latency_ms
        wanted = limits.latency_ms / whole.latency_ms
        for number in range(_ROUNDS):
            self.progress(f"plan {number + 1}: solving and measuring", number, _ROUNDS)
            fresh = self._solved(edges, self._budget(allowed, limits, target.depth), [one.path for one in tried])
            if not fresh:
                break
            tried += self._try(fresh)
            allowed = limits.latency_ms / _off(tried[-len(fresh) :])
            edges = self._corrected(tried)
        if not tried:
            raise NotReachedError(self._unreachable(limits, target.depth), "Ask for less, or allow longer spans.")
        beside = self._beside(tried, limits, allowed, target.depth, removals=trial is not None)
        tried = self._mended(tried, beside, wanted)
        chosen, tried = self._confirmed(tried, wanted)
        for _ in range(_AGAIN):
            if not self.clock.measures or chosen.share <= wanted * _SLACK:
                break
            fresh = self._faster(chosen, tried, limits, target.depth, removals=trial is not None)
            if not fresh:
                break
            chosen, tried = self._confirmed([*tried, *self._mended(self._try(fresh), [], wanted)], wanted)
        said: list[str] = []
        if trial is not None and trial.plans > 1 and chosen.share <= wanted * _SLACK:
            others = sorted((one for one in tried if one.path != chosen.path), key=_order)
            met = [one for one in others if one.share <= wanted * _SLACK and math.isfinite(one.mended)]
            chosen, said = self._by_trial(trial, [chosen, *met])
        reached = chosen.share <= wanted * _SLACK
        asked = "" if reached else f", asked for {100 * wanted:.1f} %"
        done = self._finished(chosen, tried, reached=reached, asked=asked)
        return replace(done, notes=[*done.notes, *said])

    def picked(self, number: int) -> PlanResult:
        """The plan with this number on the front, from 1.

        Raises:
            UsageError: there is no such point.
        """
        tried = self._try([self._numbered(number)])
        done = self._finished(tried[0], tried, reached=True)
        return replace(done, planning=done.planning.model_copy(update={"picked": number}))

    def fastest_within(self, max_drop: float, validation: Sequence[Batch]) -> PlanResult:
        """The fastest plan of the front that loses at most `max_drop` points of the metric on `validation`.

        The front is searched by halves; each plan looked at is built, refitted and measured. A faster plan seldom loses
        less, so this finds the fastest, or one close by.

        Raises:
            NotReachedError: not even the slowest plan with any change is within it.
        """
        reading = self.builder.reading
        original = predictions(self.anatomy.model, validation, reading=reading)
        points = [path for path in self.front if self.builder.actions(path)]  # fastest first
        found: PlanResult | None = None
        chosen: _Tried | None = None
        low, high, nearest = 0, len(points), math.inf
        tried: list[_Tried] = []
        while low < high:
            middle = (low + high) // 2
            self.progress(f"trying plan {middle + 1} of the front", len(tried), max(1, len(points).bit_length()))
            tried += self._try([points[middle]])
            now = self._finished(tried[-1], tried, reached=True)
            comparison = compare(original, predictions(now.model, validation, reading=reading), "validation")
            nearest = min(nearest, 100 * metric_drop(comparison))
            if 100 * metric_drop(comparison) <= max_drop + 1e-9:
                found, chosen, high = replace(now, validation=comparison), tried[-1], middle
            else:
                low = middle + 1
        if found is None or chosen is None:
            raise NotReachedError(
                f"no plan of the front is within {max_drop:g} points on validation; the nearest loses {nearest:.2f}",
                "Ask for less, or give more calibration images.",
            )
        # Plans that were tried after it lost too much; the record holds them too.
        planning = found.planning.model_copy(update={"rounds": self._rounds(tried, chosen)})
        message = f"{found.message}, within {max_drop:g} points on validation"
        return replace(found, planning=planning, message=message)

    def _numbered(self, number: int) -> Path:
        if not 1 <= number <= len(self.front):
            raise UsageError(f"there is no plan {number} on the front", f"It has {len(self.front)} points, from 1.")
        return self.front[number - 1]

    def _solved(self, edges: Sequence[Edge], budget: ResourceLimits | None, known: list[Path]) -> list[Path]:
        """The best few plans that were not built yet; nothing if the best one was: then the search is stable."""
        if budget is None:
            return []
        if not known:
            return best(edges, self.length, budget, _BUILT)
        found: list[Path] = []
        without = [frozenset(one.edges) for one in known]
        first = solve(edges, self.length, budget)
        if first is None or frozenset(first.edges) in without:
            return []
        while len(found) < _BUILT:
            path = solve(edges, self.length, budget, without=[*without, *(frozenset(one.edges) for one in found)])
            if path is None:
                break
            found.append(path)
        return found

    def _beside(
        self, known: Sequence[_Tried], limits: Cost, allowed: float, depth: int | None, *, removals: bool
    ) -> list[_Tried]:
        """Plans that are best where damages count otherwise, built and measured; more than once, for their latencies.

        Args:
            known: plans that were built before.
            limits: what is asked.
            allowed: the latency by the tables that comes to the one asked.
            depth: blocks left, at most.
            removals: whether plans that favour removal are among them.
        """
        found: list[_Tried] = []
        for tighter in _TIGHTER:
            paths = [one.path for one in (*known, *found)]
            fresh = self._otherwise(self._budget(tighter * allowed, limits, depth), paths, removals=removals)
            if fresh:
                found += self._try(fresh)
                allowed = limits.latency_ms / _off(found[-len(fresh) :])
        return found

    def _otherwise(self, budget: ResourceLimits | None, known: Sequence[Path], *, removals: bool) -> list[Path]:
        """Plans that were not built yet, best where damages count otherwise; `removals`: those of removals too."""
        if budget is None:
            return []
        views = [concave_damage(self.tables.edges, power) for power in POWERS]
        views += [discounted_removals(self.tables.edges, factor) for factor in FACTORS if removals]
        found: dict[tuple[int, ...], Path] = {}
        for edges in views:
            path = solve(edges, self.length, budget)
            if path is not None and all(path.edges != one.edges for one in known):
                found.setdefault(path.edges, path)
        return list(found.values())

    def _faster(
        self, slow: _Tried, tried: Sequence[_Tried], limits: Cost, depth: int | None, *, removals: bool
    ) -> list[Path]:
        """Plans that were not built yet, for the latency by the tables that one timed for longer says is right."""
        budget, known = self._budget(limits.latency_ms / _off([slow]), limits, depth), [one.path for one in tried]
        solved = self._solved(self._corrected(tried), budget, known)
        others = self._otherwise(budget, [*known, *solved], removals=removals)
        return [*solved, *others]

    def _mended(self, tried: Sequence[_Tried], beside: Sequence[_Tried], wanted: float) -> list[_Tried]:
        """All of them, those beside and the best few of the others with their damage after a refit on a part.

        A refit changes the order of plans: it mends a few large changes better than many small ones.
        """
        best_built = sorted(tried, key=_order)
        asked = [one for one in best_built if one.share <= wanted * _NEAR][:_REFITTED]
        asked += [one for one in beside if one.share <= wanted * _NEAR]
        if len(asked) < 2 or not self.builder.actions(asked[0].path):
            return [*tried, *beside]
        mended: dict[tuple[int, ...], float] = {}
        for number, one in enumerate(asked):
            self.progress("refitting the best plans on a part", number, len(asked))
            mended[one.path.edges] = min(one.damage, self.builder.damage_of(self.builder.refitted(one.path)))
        return [replace(one, mended=mended.get(one.path.edges, math.inf)) for one in (*tried, *beside)]

    def _by_trial(self, trial: RecoveryProbe, contenders: Sequence[_Tried]) -> tuple[_Tried, list[str]]:
        """Of the first few the one that a short recovery leaves nearest to the original, and what is to be said."""
        asked = contenders[: trial.plans]
        if len(asked) < 2:
            return asked[0], []
        came = []
        for number, one in enumerate(asked):
            self.progress("trying how well plans recover", number, len(asked))
            actions = self.builder.actions(one.path)
            came.append(
                (actions, min(one.mended, one.damage), trial.recovered(self.builder.refitted(one.path), actions))
            )
        least = min(range(len(came)), key=lambda number: came[number][2])
        return asked[least], [sentence(trial, came, least)]

    def _try(self, paths: Sequence[Path]) -> list[_Tried]:
        """Build plans and measure them, all in turns."""
        networks = [self.builder.build(path) for path in paths]
        whole = self.tables.whole.latency_ms
        guessed = [(self._priced(path).latency_ms + self.tables.fixed.latency_ms) / whole for path in paths]
        shares = guessed
        if self.clock.measures:
            named = {str(number): network for number, network in enumerate(networks)}
            times = self.clock.networks({"whole": self.anatomy.model, **named})
            shares = [times[str(number)] / times["whole"] for number in range(len(networks))]
        damages = [self.builder.damage_of(one) for one in networks]
        return [
            _Tried(self._priced(path), *figures) for path, *figures in zip(paths, guessed, shares, damages, strict=True)
        ]

    def _confirmed(self, tried: list[_Tried], wanted: float) -> tuple[_Tried, list[_Tried]]:
        """The plan of least damage that is fast enough when it is timed for longer; else the fastest.

        Of many plans timed shortly the one that seems fast enough may only have been lucky.
        """
        if not self.clock.measures or not math.isfinite(wanted):
            met = [one for one in tried if one.share <= wanted * _SLACK]
            return (min(met, key=_order) if met else min(tried, key=lambda one: one.share)), tried
        near = sorted((one for one in tried if one.share <= wanted * _NEAR), key=_order)[:_CONFIRMED]
        fastest = min(tried, key=lambda one: one.share)
        asked = near if any(one is fastest for one in near) else [*near, fastest]
        self.progress("timing the best plans for longer", 0, 1)
        named = {str(number): self.builder.build(one.path) for number, one in enumerate(asked)}
        times = self.clock.networks({"whole": self.anatomy.model, **named}, longer=True)
        sure = [replace(one, share=times[str(number)] / times["whole"]) for number, one in enumerate(asked)]
        met = [one for one in sure if one.share <= wanted * _SLACK]
        chosen = min(met, key=_order) if met else min(sure, key=lambda one: one.share)
        known = {one.path.edges: one for one in sure}
        return chosen, [known.get(one.path.edges, one) for one in tried]

    def _priced(self, path: Path) -> Path:
        """A path with the damage of the tables, not of the corrected ones."""
        return path.model_copy(update={"damage": sum(self.tables.edges[index].damage for index in path.edges)})

    def _corrected(self, tried: Sequence[_Tried]) -> list[Edge]:
        """Edges of plans that were worse than promised, against the other plans, count for more; and the reverse."""
        off = [math.log(max(one.damage, 1e-9) / max(one.path.damage, 1e-9)) for one in tried]
        middle = sum(off) / len(off)
        edges = list(self.tables.edges)
        for index in {index for one in tried for index in one.path.edges}:
            own = [value - middle for one, value in zip(tried, off, strict=True) if index in one.path.edges]
            factor = math.exp(sum(own) / len(own))
            edges[index] = edges[index].model_copy(update={"damage": edges[index].damage * factor})
        return edges

    def _budget(self, allowed: float, limits: Cost, depth: int | None) -> ResourceLimits | None:
        """What is left for the steps; None where the rest of the network takes more than all of it."""
        fixed, left = self.tables.fixed, {}
        for name, limit in (("latency_ms", allowed), ("macs", limits.macs), ("params", limits.params)):
            if limit < getattr(fixed, name):
                return None
            left[name] = None if limit == float("inf") else limit - getattr(fixed, name)
        if depth is not None:
            if depth < self._others():
                return None
            left["depth"] = float(depth - self._others())
        return ResourceLimits(**left)

    def _finished(self, chosen: _Tried, tried: Sequence[_Tried], *, reached: bool, asked: str = "") -> PlanResult:
        """The chosen plan refitted, with what is known about how it was found."""
        actions = self.builder.actions(chosen.path)
        made = self.builder.best_of(chosen.path)
        planning = Planning(
            original_ms=self.tables.whole.latency_ms,
            latency_source=self.clock.source,
            candidates=sum(edge.action != "keep" for edge in self.tables.edges),
            rounds=self._rounds(tried, chosen),
            damage_refitted=made.refitted,
            damage_final=made.damage,
            front=self.points(),
        )
        return PlanResult(
            made.network,
            actions,
            planning,
            reached,
            f"{_words(actions, self.tables.line)}; {100 * chosen.share:.1f} % of the original's latency{asked}",
            worths={one.path: one for one in self.tables.worths},
            notes=[*self.tables.notes, made.said],
        )

    def _rounds(self, tried: Sequence[_Tried], chosen: _Tried) -> list[PlanRound]:
        """Every plan that was built and measured, in order."""
        whole = self.tables.whole.latency_ms
        return [
            PlanRound(
                latency_guessed_ms=plan.guessed_share * whole,
                latency_measured_ms=plan.share * whole,
                damage_guessed=plan.path.damage,
                damage_measured=plan.damage,
                damage_refitted=plan.mended if math.isfinite(plan.mended) else None,
                chosen=plan is chosen,
            )
            for plan in tried
        ]

    def _point(self, path: Path) -> FrontPoint:
        actions, fixed = self.builder.actions(path), self.tables.fixed
        spans = [one for one in actions if isinstance(one, Replace)]
        return FrontPoint(
            latency_ms=path.latency_ms + fixed.latency_ms,
            damage=path.damage,
            macs=int(path.macs + fixed.macs),
            params=int(path.params + fixed.params),
            removed=[one.path for one in actions if isinstance(one, Remove)],
            replaced=[one.paths for one in spans],
            kinds=[one.kind for one in self.builder.stand_ins(path)],
            depth=path.depth + self._others(),
        )

    def _others(self) -> int:
        """Blocks that no plan can touch."""
        return len(self.anatomy.chain) - sum(step.residual for step in self.tables.line.segments)

    def _unreachable(self, limits: Cost, depth: int | None) -> str:
        reach = {}
        for name, words in _QUANTITIES.items():
            if getattr(limits, name) < float("inf"):
                least = best(self.tables.edges, self.length, ResourceLimits(), 1, objective=name)
                total = sum(getattr(one, name) for one in least) + getattr(self.tables.fixed, name)
                reach[words] = 100 * total / getattr(self.tables.whole, name)
        said = (
            [", ".join(f"{words} {share:.0f} %" for words, share in reach.items()) + " of the original's"]
            if reach
            else []
        )
        if depth is not None:
            [least_deep] = best(self.tables.edges, self.length, ResourceLimits(), 1, objective="depth")
            said.append(f"the shallowest has {least_deep.depth + self._others()} blocks")
        return "no plan meets the budget" + (f": by the tables, {', '.join(said)}" if said else "")


def _off(tried: Sequence[_Tried]) -> float:
    """By what factor the tables guess latencies too low: the middle one of these plans."""
    return sorted(one.share / one.guessed_share for one in tried)[len(tried) // 2]


def _order(one: _Tried) -> tuple[float, float]:
    """By the damage that a refit leaves, where it is known; all others behind, as they were built."""
    return one.mended, one.damage


def _words(actions: Sequence[Remove | Replace], line: SegmentChain) -> str:
    removed = sum(isinstance(one, Remove) for one in actions)
    spans = [one for one in actions if isinstance(one, Replace)]
    paths = {path for one in spans for path in one.paths}
    covered = [step for step in line.segments if step.can_bound_span and step.path in paths]
    said = [f"{removed} blocks removed"] if removed else []
    if spans:
        what = "blocks" if covered[0].residual else "layers"
        said.append(f"{len(covered)} {what} replaced by {len(spans)} stand-ins")
    return ", ".join(said) or "nothing changed"


def plan_choice(planned: PlanResult) -> RemovalChoice:
    """A plan in the form the record is made of."""
    removed = [one.path for one in planned.actions if isinstance(one, Remove)]
    replaced = [one.paths for one in planned.actions if isinstance(one, Replace)]
    return RemovalChoice(
        removed,
        planned.worths,
        {},
        planned.reached,
        planned.message,
        validation=planned.validation,
        replaced=replaced,
        planning=planned.planning,
    )
