"""The tables a plan is chosen from: every way to treat every step or span, with its damage and what it costs.

Damage: mean divergence from the original with only this change, on held-back samples, prefixes cached. Both tables grow
on the shelf, so that what is measured once is never measured again.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from shoal.batches import Batch, like_of
from shoal.blocks import BlockGraph
from shoal.blocks.prefix_cache import Forward, PrefixCache
from shoal.errors import UsageError
from shoal.measure import mean_interval
from shoal.pipeline.cache import MeasurementCache
from shoal.pipeline.costs import CostModel
from shoal.pipeline.profiling import PlacedModule
from shoal.plan import Edge, Replacement
from shoal.preserve import evaluating
from shoal.quantities import Cost
from shoal.record import Interval
from shoal.recover import TrainingBudget
from shoal.replace import (
    MAX_UNKNOWNS,
    REPLACEMENTS,
    STUDENTS,
    FittedReplacement,
    ReplacementSpec,
    SegmentChain,
    Span,
    StudentSpec,
    build_replacement,
    find_spans,
    fit_all,
    split_by_memory,
    students_of,
    train_students,
    two_blocks,
)
from shoal.scanning import DamageFunction, RemovalDamage, divergence

Progress = Callable[[str, int, int], None]

# conv5 and lowrank3/8 are there for who asks for them: on ResNet-56 they never entered a plan (benchmarks/fits.py).
DEFAULT_KINDS = ("identity", "scale", "linear", "conv3", "lowrank1/4", "lowrank1/16")
LONGEST = 5
# How long students learn, all of them together.
STUDENT_BUDGET = "5m"
# What saves less than this share of what it replaces is not worth a fit, nor a second candidate beside a better one.
_WORTH_IT = 0.03
# A map of more unknowns than these, fitted on fewer rows than unknowns, is slow and no good.
_NARROW = 1024
# Held-out R2 that far below the fit's: too little data.
_PARTED = 0.1


@dataclass
class CandidateTable:
    """Everything the solver needs, and the fitted stand-in behind each replacing edge."""

    line: SegmentChain
    edges: list[Edge]
    fitted: dict[int, FittedReplacement]
    whole: Cost
    fixed: Cost
    worths: list[RemovalDamage]
    notes: list[str] = field(default_factory=list)


@dataclass
class CandidateBuilder:
    """Makes the tables of one network.

    Args:
        anatomy: the original network.
        fit_on: mini-batches the stand-ins are fitted on.
        judge_on: other mini-batches their damage is measured on.
        prices: of this network, by the clock of the user's choice.
        shelf: keeps what is finished.
        longest: steps in the longest span.
        kinds: which stand-ins to try, closed forms and students.
        student_budget: for the training of all students together.
        allowed: names of the steps that may be touched; None: all.
        damage: what a change does to the output, for each sample.
        progress: called with (stage, done, total).
    """

    anatomy: BlockGraph
    fit_on: Sequence[Batch]
    judge_on: Sequence[Batch]
    prices: CostModel
    shelf: MeasurementCache
    longest: int = LONGEST
    kinds: Sequence[str] = DEFAULT_KINDS
    allowed: frozenset[str] | None = None
    damage: DamageFunction = divergence
    progress: Progress = lambda stage, done, total: None
    student_budget: TrainingBudget = field(default_factory=lambda: TrainingBudget(seconds=300))

    def make(self) -> CandidateTable:
        """Time, fit and try everything; what costs no less than what it replaces is dropped before it is fitted."""
        line, prices = self.prices.line, self.prices
        spans = find_spans(self.anatomy, line, self.longest)
        spans = [one for one in spans if self._may(*line.paths[one.start : one.stop])]
        samples = sum(batch.size for batch in self.fit_on)
        wanted = [
            one for one in enumerate_candidates(spans, self.kinds) if _has_rows(one, samples) and prices.may_pay(one)
        ]
        students = [one for one in self._students(spans) if prices.may_pay(one)]
        self.progress("timing every kind of block", 0, 1)
        like = like_of(self.anatomy.model)
        unfitted = {one.name: placed for one, placed in _untrained([*wanted, *students], like)}
        removals = removal_candidates(self.anatomy, line)
        prices.measure({**unfitted, **removals})
        wanted = [one for one in wanted if self._is_cheaper(one, unfitted[one.name])]
        students = [one for one in students if self._is_cheaper(one, unfitted[one.name])]
        unfitted.clear()  # as many weights as all students together have: not to be held while these learn
        fitted = self._fit(wanted, like)
        trained, said = self._trained(students, like)
        # A closed form fits what comes before the tail, a student what comes behind it: each among its own.
        groups = [*_by_span(fitted), *_by_span(trained)]
        tried = [one for group in groups for one in self._not_dominated(group)]
        damages = self._damages(line, tried)
        edges, behind = self._edges(line, tried, removals, damages)
        worths = [
            RemovalDamage(path, *damages[f"remove {path}"], self._judged) for path in line.paths if path in removals
        ]
        return CandidateTable(line, edges, behind, prices.whole, prices.fixed, worths, [*_notes(tried), *said])

    @property
    def _judged(self) -> int:
        return sum(batch.size for batch in self.judge_on)

    def _may(self, *paths: str) -> bool:
        """Whether the user lets these steps be touched."""
        return self.allowed is None or all(path in self.allowed for path in paths)

    def _students(self, spans: Sequence[Span]) -> list[StudentSpec]:
        """Every student, and those of two blocks that may follow one."""
        line = self.prices.line
        found = students_of(self.anatomy, line, spans, self.kinds)
        two = [two_blocks(self.anatomy, one.span, line) for one in found if one.kind == "block"]
        return [*found, *(one for one in two if one is not None)]

    def _trained(self, wanted: Sequence[StudentSpec], like: torch.Tensor) -> tuple[list[FittedReplacement], list[str]]:
        """The students, from the shelf if they are there: all together, or they start over.

        Which spans get two blocks depends on how all the single ones did, and each portion on the budget of all.
        """
        if not wanted:
            return [], []
        finished = next((line for line in self.shelf.entries if line["kind"] == "students"), None)
        if finished is not None:
            return self.shelf.fitted([one for one in wanted if one.name in finished["names"]], like), finished["notes"]
        ones = {one.span for one in wanted if one.kind == "block"}
        doubles = {one.span: one for one in wanted if one.kind == "block2" and one.span in ones}
        trained = train_students(
            self.anatomy,
            self.fit_on,
            [one for one in wanted if one.span not in doubles or one.kind != "block2"],
            doubles=doubles,
            budget=self.student_budget,
            on_progress=lambda done, total: self.progress(
                f"training {len(wanted) - len(doubles)} students", done, total
            ),
        )
        names = [_name(one) for one in trained.fitted]
        self.shelf.add_fitted(trained.fitted, names)
        self.shelf.add({"kind": "students", "names": names, "notes": trained.notes})
        return trained.fitted, trained.notes

    def _is_cheaper(self, one: ReplacementSpec | StudentSpec, placed: PlacedModule) -> bool:
        price = self.prices.of(placed.module, placed.shape)
        steps = [self.prices.steps[path] for path in self.prices.line.paths[one.span.start : one.span.stop]]
        replaced = [sum(getattr(step, name) for step in steps) for name in ("latency_ms", "macs", "params")]
        own = [price.latency_ms, price.macs, price.params]
        return any(a < (1 - _WORTH_IT) * b for a, b in zip(own, replaced, strict=True))

    def _fit(self, wanted: Sequence[ReplacementSpec], like: torch.Tensor) -> list[FittedReplacement]:
        found = {_name(one): one for one in self.shelf.fitted(wanted, like)}
        portions = split_by_memory([one for one in wanted if one.name not in found])
        for number, portion in enumerate(portions):
            fitted = fit_all(
                self.anatomy, self.fit_on, portion, on_progress=self._ticker(len(wanted), number, len(portions))
            )
            self.shelf.add_fitted(fitted, [_name(one) for one in fitted])
            found |= {_name(one): one for one in fitted}
        return [found[one.name] for one in wanted]

    def _ticker(self, stand_ins: int, portion: int, portions: int) -> Callable[[int, int], None]:
        return lambda done, of: self.progress(f"fitting {stand_ins} stand-ins", portion * of + done, portions * of)

    def _not_dominated(self, group: Sequence[FittedReplacement]) -> list[FittedReplacement]:
        """Of the stand-ins for one span those that fit best, and cheaper ones that save clearly more."""
        prices = self.prices
        least = _WORTH_IT * prices.span(group[0].span)
        kept: list[FittedReplacement] = []
        for one in sorted(group, key=lambda one: -one.r2_held_out):
            ms = prices.of(one.module, one.span.in_shape).latency_ms
            if all(ms < prices.of(other.module, other.span.in_shape).latency_ms - least for other in kept):
                kept.append(one)
        return kept

    def _edges(
        self,
        line: SegmentChain,
        fitted: list[FittedReplacement],
        removals: Mapping[str, PlacedModule],
        damages: Mapping[str, tuple[float, Interval]],
    ) -> tuple[list[Edge], dict[int, FittedReplacement]]:
        edges, behind = [], {}
        for number, step in enumerate(line.segments):
            path = step.path
            edges.append(_edge(number, number + 1, "keep", "", 0.0, self.prices.steps[path], int(step.can_bound_span)))
            if path in removals and self._may(path):
                left = self.prices.of(removals[path].module, removals[path].shape)
                edges.append(_edge(number, number + 1, "remove", "", damages[f"remove {path}"][0], left, 0))
        for one in fitted:
            behind[len(edges)] = one
            price = self.prices.of(one.module, one.span.in_shape)
            damage = damages[_name(one)][0]
            edges.append(_edge(one.span.start, one.span.stop, "replace", one.kind, damage, price, one.stand_in.depth))
        return edges, behind

    def _damages(self, line: SegmentChain, fitted: list[FittedReplacement]) -> dict[str, tuple[float, Interval]]:
        """Mean damage of each change alone, with its interval."""
        model = self.anatomy.model
        changes: dict[str, tuple[str, Mapping[nn.Module, Forward]]] = {}
        for step in line.segments:
            if step.residual:
                forward = self.anatomy.shortcut_modules[step.path].forward
                changes[f"remove {step.path}"] = (step.path, {model.get_submodule(step.path): forward})
        for one in fitted:
            changes[_name(one)] = (one.span.paths[0], span_forwards(model, one.span, one.module))
        known = self.shelf.damages()
        with evaluating(model):
            prefix = PrefixCache(self.anatomy)
            for number, batch in enumerate(self.judge_on):
                left = {name: change for name, change in changes.items() if number not in known.get(name, {})}
                self._judge(prefix, number, batch, left, known)
        found = {}
        for name in changes:
            values = torch.tensor([value for number in range(len(self.judge_on)) for value in known[name][number]])
            found[name] = (float(values.mean()), mean_interval(values))
        return found

    def _judge(
        self,
        prefix: PrefixCache,
        number: int,
        batch: Batch,
        changes: Mapping[str, tuple[str, Mapping[nn.Module, Forward]]],
        known: dict[str, dict[int, list[float]]],
    ) -> None:
        """The damage of changes on one mini-batch."""
        if not changes:
            return
        original = prefix.record(batch)
        found = {}
        for done, (name, (start, forwards)) in enumerate(changes.items()):
            output = prefix.run_from(prefix.segment_of(start), forwards)
            found[name] = self.damage(original, output, batch).detach().cpu().tolist()
            stage = f"damage of {len(changes)} changes"
            self.progress(stage, number * len(changes) + done + 1, len(self.judge_on) * len(changes))
        self.shelf.add_damages(number, found)
        for name, values in found.items():
            known.setdefault(name, {})[number] = values


def check_kinds(kinds: Sequence[str]) -> None:
    """Refuse a kind of stand-in that there is not.

    Raises:
        UsageError: names those there are.
    """
    unknown = next((kind for kind in kinds if kind not in (*REPLACEMENTS, *STUDENTS)), None)
    if unknown is not None:
        raise UsageError(f"no stand-in is called '{unknown}'", f"There are {', '.join((*REPLACEMENTS, *STUDENTS))}.")


def enumerate_candidates(spans: Sequence[Span], kinds: Sequence[str]) -> list[ReplacementSpec]:
    """Every stand-in of these kinds that suits a span and is not too wide to be fitted."""
    return [
        ReplacementSpec(span, kind)
        for span in spans
        for kind in kinds
        if kind in REPLACEMENTS
        if REPLACEMENTS[kind].supports(span) and span.in_channels * REPLACEMENTS[kind].kernel ** 2 <= MAX_UNKNOWNS
    ]


def removal_candidates(anatomy: BlockGraph, line: SegmentChain) -> dict[str, PlacedModule]:
    """What is left of each residual block without its branches."""
    return {
        step.path: PlacedModule(anatomy.shortcut_modules[step.path], step.in_shape, step.paths)
        for step in line.segments
        if step.residual
    }


def timed_modules(
    anatomy: BlockGraph, line: SegmentChain, kinds: Sequence[str], longest: int
) -> dict[str, PlacedModule]:
    """Everything but the steps that a plan might need the time of, by name."""
    wanted = enumerate_candidates(find_spans(anatomy, line, longest), kinds)
    unfitted = {one.name: placed for one, placed in _untrained(wanted, like_of(anatomy.model))}
    return {**unfitted, **removal_candidates(anatomy, line)}


def span_forwards(model: nn.Module, span: Span, module: nn.Module) -> dict[nn.Module, Forward]:
    """Forwards that put `module` in the place of a span."""
    placed = PlacedModule(module, span.in_shape, span.paths, span.output_formats)
    return {model.get_submodule(path): forward for path, forward in placed.forwards}


def _untrained(
    wanted: Sequence[ReplacementSpec | StudentSpec], like: torch.Tensor
) -> list[tuple[ReplacementSpec | StudentSpec, PlacedModule]]:
    """A module for each; those that are the same as data are made once."""
    made: dict[Replacement, nn.Module] = {}
    found = []
    for one in wanted:
        described = one.stand_in
        if described not in made:
            made[described] = build_replacement(described, like, one.original)
        found.append((one, PlacedModule(made[described], one.span.in_shape, one.span.paths, one.span.output_formats)))
    return found


def _has_rows(one: ReplacementSpec, samples: int) -> bool:
    """Whether a wide map has more rows to be fitted on than unknowns; a narrow one does well with few, by its ridge."""
    positions = math.prod(one.span.out_shape[1:] if one.span.layout == "channels_first" else one.span.out_shape[:-1])
    return one.unknowns <= _NARROW or samples * positions > one.unknowns


def _by_span(fitted: Sequence[FittedReplacement]) -> list[list[FittedReplacement]]:
    groups: dict[tuple[Span, int], list[FittedReplacement]] = {}
    for one in fitted:
        # Students of fewer blocks are for who counts blocks, though others may fit better and be faster.
        groups.setdefault((one.span, len(one.stand_in.copies)), []).append(one)
    return list(groups.values())


def _notes(fitted: Sequence[FittedReplacement]) -> list[str]:
    parted = [one for one in fitted if not one.stand_in.student and one.r2_fit - one.r2_held_out > _PARTED]
    if not parted:
        return []
    return [f"{len(parted)} stand-ins were fitted on too little data: held-out R2 far below the fit's"]


def _name(one: FittedReplacement) -> str:
    return f"{one.kind} {one.span.name}"


def _edge(start: int, stop: int, action: Any, kind: str, damage: float, price: Cost, depth: int) -> Edge:
    return Edge(
        start=start,
        stop=stop,
        action=action,
        kind=kind,
        damage=max(0.0, damage),
        latency_ms=price.latency_ms,
        macs=price.macs,
        params=price.params,
        depth=depth,
    )
