"""Choose by plan: the path of least damage under a budget, built, measured, corrected, and refitted."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import nn

from shoal.batches import Batch, call, logits_of
from shoal.blocks import Anatomy, dissect
from shoal.errors import NotReachedError
from shoal.measure import kl_per_sample, latency, log_probabilities
from shoal.pipeline.choose import Choice
from shoal.pipeline.table_maker import TableMaker, Tables
from shoal.pipeline.target import Price, Target
from shoal.plan import Budget, Path, Remove, Replace, best, front
from shoal.plan.solver import Objective
from shoal.preserve import evaluating
from shoal.record import FrontPoint
from shoal.replace import Fitted, line_of, recalibrate_, refit_
from shoal.scanning import Worth
from shoal.surgery import remove_blocks_
from shoal.surgery.replace import replace_spans_

Progress = Callable[[str, int, int], None]

# How many of the solver's plans are built and measured, how often budgets are corrected, and what still counts as met.
_BUILT = 3
_ROUNDS = 3
_SLACK = 1.01
_QUANTITIES: dict[Objective, str] = {
    "latency_ms": "the fastest takes",
    "macs": "the one with the fewest MACs has",
    "params": "the smallest has",
}


@dataclass(frozen=True)
class Planned:
    """The network of the chosen plan and how it was found."""

    model: nn.Module
    actions: list[Remove | Replace]
    damage: float
    measured_ms: float
    whole_ms: float
    guessed_ms: float
    reached: bool
    message: str
    points: list[FrontPoint] = field(default_factory=list)
    worths: dict[str, Worth] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class Planner:
    """Everything planning needs."""

    anatomy: Anatomy
    model: nn.Module
    target: Target
    fit_on: Sequence[Batch]
    judge_on: Sequence[Batch]
    timed: Batch
    channels_last: bool = False
    progress: Progress = lambda stage, done, total: None
    tables: Tables | None = None
    allowed: frozenset[str] | None = None

    def __post_init__(self) -> None:
        # The last mini-batch of a loader may hold a single sample, of which none can be held out.
        self.fit_on = [batch for batch in self.fit_on if batch.size > 1] or self.fit_on

    def plan(self) -> Planned:
        """Tables, solve, build the best few, measure, correct and solve again; then refit.

        Raises:
            NotReachedError: no plan meets the budget, by the tables; or there is no block to plan with.
        """
        if not line_of(self.anatomy).paths:
            note = self.anatomy.chain.note or "no block of the network can be taken out"
            raise NotReachedError(note, "`shoal trace` gives the reason for each block.")
        if self.tables is None:
            maker = TableMaker(
                self.anatomy,
                self.fit_on,
                self.judge_on,
                self.timed,
                channels_last=self.channels_last,
                progress=self.progress,
                allowed=self.allowed,
            )
            self.tables = maker.make()
        tables, limits = self.tables, self.target.limits(self.tables.whole)
        tried: list[tuple[float, float, Path, nn.Module]] = []
        allowed = limits.latency_ms
        for round_number in range(_ROUNDS):
            self.progress(f"plan {round_number + 1}: solving and measuring", round_number, _ROUNDS)
            budget = self._budget(allowed, limits)
            paths = best(tables.edges, len(tables.line.paths), budget, _BUILT) if budget is not None else []
            if not paths:
                break
            built = [(path, self.build(path)) for path in paths]
            path, network = min(built, key=lambda one: self.damage_of(one[1]))
            whole_ms, measured = self._time(network)
            tried.append((measured / whole_ms, self.damage_of(network), path, network))
            wanted = limits.latency_ms / tables.whole.latency_ms
            if measured / whole_ms <= wanted * _SLACK:
                break
            allowed *= wanted / (measured / whole_ms)
        if not tried:
            raise NotReachedError(self._unreachable(limits), "Ask for less, or allow longer spans.")
        wanted = limits.latency_ms / tables.whole.latency_ms
        met = [one for one in tried if one[0] <= wanted * _SLACK]
        share, _, path, network = min(met, key=lambda one: one[1]) if met else min(tried, key=lambda one: one[0])
        return self._finished(path, network, share, bool(met))

    def _budget(self, allowed: float, limits: Price) -> Budget | None:
        """What is left for the blocks; None where the rest of the network takes more than all of it."""
        fixed, left = self._tables().fixed, {}
        for name, limit in (("latency_ms", allowed), ("macs", limits.macs), ("params", limits.params)):
            if limit < getattr(fixed, name):
                return None
            left[name] = None if limit == float("inf") else limit - getattr(fixed, name)
        return Budget(**left)

    def build(self, path: Path) -> nn.Module:
        """A copy of the original with the path's changes."""
        anatomy = dissect(copy.deepcopy(self.model).eval(), self.fit_on[0].take(2))
        actions = self.actions(path)
        fitted = {one.span.paths[0]: copy.deepcopy(one.module) for one in self._stand_ins(path)}
        replace_spans_(anatomy, [one for one in actions if isinstance(one, Replace)], fitted)
        remove_blocks_(anatomy, [one.path for one in actions if isinstance(one, Remove)])
        return anatomy.model.eval()

    def actions(self, path: Path) -> list[Remove | Replace]:
        """The path as actions of a plan."""
        tables = self._tables()
        found: list[Remove | Replace] = []
        for index in path.edges:
            edge = tables.edges[index]
            if edge.action == "remove":
                found.append(Remove(path=tables.line.paths[edge.start]))
            elif edge.action == "replace":
                fitted = tables.fitted[index]
                found.append(Replace(paths=list(fitted.span.paths), stand_in=fitted.stand_in))
        return found

    def _stand_ins(self, path: Path) -> list[Fitted]:
        tables = self._tables()
        return [tables.fitted[index] for index in path.edges if index in tables.fitted]

    def _tables(self) -> Tables:
        if self.tables is None:
            raise RuntimeError("plan() makes the tables first")
        return self.tables

    def damage_of(self, network: nn.Module) -> float:
        """Mean KL(original || network) on the samples held back for judging."""
        total, count = 0.0, 0
        with evaluating(self.anatomy.model), evaluating(network):
            for batch in self.judge_on:
                original = log_probabilities(logits_of(call(self.anatomy.model, batch)), batch.target)
                total += float(kl_per_sample(original, logits_of(call(network, batch))).sum())
                count += batch.size
        return total / count

    def _time(self, network: nn.Module) -> tuple[float, float]:
        networks = {"whole": self.anatomy.model, "cut": network}
        times = latency(networks, self.timed, channels_last=self.channels_last, min_seconds=0.7)
        return times["whole"].median_ms, times["cut"].median_ms

    def _finished(self, path: Path, network: nn.Module, share: float, met: bool) -> Planned:
        tables = self._tables()
        stand_ins = self._stand_ins(path)
        before = self.damage_of(network)
        refitted = copy.deepcopy(network)
        for number, one in enumerate(stand_ins):
            self.progress("refitting stand-ins one after the other", number, len(stand_ins))
            refit_(self.anatomy, refitted, one, self.fit_on)
        after = self.damage_of(refitted) if stand_ins else before
        kept = refitted if after < before else network
        self.progress("recalibrating batch norms", 0, 1)
        calibrated = recalibrate_(copy.deepcopy(kept), self.fit_on)
        again = self.damage_of(calibrated)
        final, damage = (calibrated, again) if again < min(before, after) else (kept, min(before, after))
        notes = [
            *tables.notes,
            f"KL on held-back calibration samples: {path.damage:.4f} by the table, {before:.4f} built, "
            f"{after:.4f} refitted, {again:.4f} with batch norms recalibrated; the best was kept",
        ]
        whole = tables.whole.latency_ms
        guessed = path.latency_ms + tables.fixed.latency_ms
        notes.append(f"latency by the tables {guessed:.3g} ms of {whole:.3g} ms; measured {share * whole:.3g} ms")
        wanted = self.target.limits(tables.whole).latency_ms / whole
        message = f"{_words(self.actions(path))}; {100 * share:.1f} % of the original's latency"
        if not met:
            message += f", asked for {100 * wanted:.1f} %"
        return Planned(
            final,
            self.actions(path),
            damage,
            share * whole,
            whole,
            guessed,
            met,
            message,
            points=self._front(),
            worths={one.path: one for one in tables.worths},
            notes=notes,
        )

    def _front(self) -> list[FrontPoint]:
        tables = self._tables()
        found = []
        for path in front(tables.edges, len(tables.line.paths), points=20):
            actions = self.actions(path)
            found.append(
                FrontPoint(
                    latency_ms=path.latency_ms + tables.fixed.latency_ms,
                    damage=path.damage,
                    macs=int(path.macs + tables.fixed.macs),
                    params=int(path.params + tables.fixed.params),
                    removed=[one.path for one in actions if isinstance(one, Remove)],
                    replaced=[one.paths for one in actions if isinstance(one, Replace)],
                )
            )
        return found

    def _unreachable(self, limits: Price) -> str:
        tables, reach = self._tables(), {}
        for name, words in _QUANTITIES.items():
            if getattr(limits, name) < float("inf"):
                least = best(tables.edges, len(tables.line.paths), Budget(), 1, objective=name)
                total = sum(getattr(one, name) for one in least) + getattr(tables.fixed, name)
                reach[words] = 100 * total / getattr(tables.whole, name)
        said = ", ".join(f"{words} {share:.0f} %" for words, share in reach.items())
        return f"no plan meets the budget: by the tables, {said} of the original's"


def _words(actions: Sequence[Remove | Replace]) -> str:
    removed = sum(isinstance(one, Remove) for one in actions)
    spans = [one for one in actions if isinstance(one, Replace)]
    covered = sum(len(one.paths) for one in spans)
    said = [f"{removed} blocks removed"] if removed else []
    if spans:
        said.append(f"{covered} blocks replaced by {len(spans)} stand-ins")
    return ", ".join(said) or "nothing changed"


def planned_choice(planned: Planned) -> Choice:
    """A plan in the form the record is made of."""
    removed = [one.path for one in planned.actions if isinstance(one, Remove)]
    replaced = [one.paths for one in planned.actions if isinstance(one, Replace)]
    return Choice(
        removed,
        planned.worths,
        {},
        planned.reached,
        planned.message,
        replaced=replaced,
        front=planned.points,
    )
