"""The tables a plan is chosen from: every way to treat every segment or span, with its damage and what it costs.

Damage: mean divergence from the original with only this change and the cheapest refit behind it (`candidate_refit`), on
held-back samples, prefixes cached. Of pairs of changes that lie close together a sample is measured, those that good
plans hold: what both do beyond the sum corrects the solver. Everything that is measured goes into the measurement
cache, so that it is never measured twice.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import nn

from shoal.batches import Batch, like_of
from shoal.blocks import BlockGraph
from shoal.errors import UsageError
from shoal.pipeline.cache import MeasurementCache
from shoal.pipeline.candidate_damage import ChangeDamage, DamageMeter, DamageScorer
from shoal.pipeline.candidate_refit import (
    CandidateRefit,
    CandidateRefitConfig,
    PlacedChange,
    removal_change,
    replacement_change,
)
from shoal.pipeline.costs import CostModel
from shoal.pipeline.pair_damage import measured_pairs
from shoal.pipeline.profiling import PlacedModule
from shoal.pipeline.screening import is_screened, least_influence, screen, unscreened
from shoal.pipeline.unit_removals import unit_removals
from shoal.plan import Edge, PairTerm, Path, Remove, Replacement
from shoal.quantities import QUANTITIES, Cost
from shoal.recover import TrainingBudget
from shoal.replace import (
    FOLDED,
    LINEAR_ATTENTION,
    MAX_UNKNOWNS,
    REPLACEMENTS,
    STUDENTS,
    FitScorer,
    FittedReplacement,
    FoldedSpec,
    LinearAttentionSpec,
    ReplacementSpec,
    SegmentChain,
    Span,
    StudentSpec,
    build_replacement,
    find_spans,
    fit_all,
    fit_folded,
    fit_linear_attentions,
    folded_specs,
    linear_attention_specs,
    split_by_key,
    split_by_memory,
    students_of,
    train_students,
    two_blocks,
)
from shoal.scanning import DamageFunction, RemovalDamage, divergence
from shoal.workers import LocalWorkers, Workers, WorkerTask, working

Progress = Callable[[str, int, int], None]

# conv5 and lowrank3/8 are there for who asks for them: on ResNet-56 they never entered a plan (benchmarks/fits.py).
DEFAULT_KINDS = ("identity", "scale", "linear", "conv3", "lowrank1/4", "lowrank1/16", FOLDED)
LONGEST = 5
# How long students learn, all of them together.
STUDENT_BUDGET = "5m"
# What saves less than this share of what it replaces is not worth a fit, nor a second candidate next to a better one.
MIN_SAVING = 0.03
# A map of more unknowns than these, fitted on fewer rows than unknowns, is slow and no good.
_MAX_UNKNOWNS_WITH_FEW_ROWS = 1024
# Of each length beyond `longest` so many folds are tried.
_LONG_FOLDS = 2
# A map that predicts less than this share of what was removed is no better than its removal.
_MIN_R2 = 0.02
# Tasks of fits for each of several workers: a task takes a pass over the data.
_FITS_PER_WORKER = 2
# Held-out R2 this far below the fit's: too little data.
_MAX_R2_GAP = 0.1


_InBlockSpec = FoldedSpec | LinearAttentionSpec


@dataclass
class CandidateTable:
    """Everything the solver needs, the fitted replacement of each replacing edge and the units of each that takes some.

    `fixed_depth` is the depth of what no plan can touch: blocks, or units where plans are made of these. `pairs` are
    corrections for edges that are taken together.
    """

    segments: SegmentChain
    edges: list[Edge]
    fitted_by_edge: dict[int, FittedReplacement]
    whole: Cost
    fixed: Cost
    removal_damages: list[RemovalDamage]
    notes: list[str] = field(default_factory=list)
    units_by_edge: dict[int, tuple[Remove, ...]] = field(default_factory=dict)
    fixed_depth: int = 0
    pairs: list[PairTerm] = field(default_factory=list)

    @property
    def change_names(self) -> dict[int, str]:
        """The names of the changes, by edge."""
        names = {}
        for index, edge in enumerate(self.edges):
            if edge.action == "remove":
                names[index] = "remove " + " ".join(removal.name for removal in self.removals(index))
            elif edge.action == "replace":
                names[index] = _name(self.fitted_by_edge[index])
        return names

    def guess(self, edges: Sequence[int]) -> "DamageGuess":
        """What the damage of a plan is guessed to be, by its edges."""
        chosen, sums = set(edges), [self.edges[index] for index in edges]
        terms = [pair.damage for pair in self.pairs if {pair.first, pair.second} <= chosen]
        refitted = sum(edge.damage for edge in sums)
        raw = sum(edge.damage if edge.raw_damage is None else edge.raw_damage for edge in sums)
        return DamageGuess(raw, refitted, refitted + sum(terms))

    def corrected(self, paths: Sequence[Path]) -> list[Path]:
        """Paths of a front, cheapest first, with pairs counted; without those that are no better than a cheaper one."""
        kept: list[Path] = []
        for path in paths:
            damage = self.guess(path.edges).corrected
            if all(damage < cheaper.damage for cheaper in kept):
                kept.append(path.model_copy(update={"damage": damage}))
        return kept

    def removals(self, index: int) -> tuple[Remove, ...]:
        """What an edge removes: a block, or some of its units."""
        edge = self.edges[index]
        if edge.action != "remove":
            return ()
        return self.units_by_edge.get(index) or (Remove(path=self.segments.paths[edge.start]),)


@dataclass(frozen=True)
class DamageGuess:
    """Of a plan: the sum of the damages of its changes without a refit, with it, and that corrected for pairs."""

    raw: float
    refitted: float
    corrected: float


@dataclass
class CandidateBuilder:
    """Makes the tables of one network.

    Args:
        graph: of the original network.
        fit: mini-batches the replacements are fitted on.
        judge: other mini-batches their damage is measured on.
        costs: of this network, by the latency backend of the user's choice.
        cache: keeps what is finished.
        longest: segments in the longest span; folds may be longer, unless it is set below the default.
        kinds: which replacements to try, closed forms and students.
        student_budget: for the training of all students together.
        depth_only: whether the goal is about the number of blocks alone, whatever these cost.
        workers: who fits closed forms and measures damages.
        screening: whether a very long chain is screened, or measured whole like others.
        allowed: names of the segments that may be touched; None: all.
        damage: how far outputs are from the original's, for each sample.
        progress: called with (stage, done, total).
        units: by block those that may go alone; None where only whole blocks may.
    """

    graph: BlockGraph
    fit: Sequence[Batch]
    judge: Sequence[Batch]
    costs: CostModel
    cache: MeasurementCache
    longest: int = LONGEST
    kinds: Sequence[str] = DEFAULT_KINDS
    allowed: frozenset[str] | None = None
    damage: DamageFunction = divergence
    progress: Progress = lambda stage, done, total: None
    student_budget: TrainingBudget = field(default_factory=lambda: TrainingBudget(seconds=300))
    refit: CandidateRefitConfig | None = field(default_factory=CandidateRefitConfig)
    units: Mapping[str, tuple[int, ...]] | None = None
    depth_only: bool = False
    workers: Workers = field(default_factory=LocalWorkers)
    screening: bool = True

    def __post_init__(self) -> None:
        segments = self.costs.segments
        spans = self._spans(self.longest)
        self.is_screened = self.screening and is_screened(segments)
        self.kept = (
            screen(self.graph, segments, spans, self.fit[0]) if self.is_screened else unscreened(segments, spans)
        )
        units = unit_removals(self.graph, segments, self.units or {})
        self.unit_removals = [removal for removal in units if removal.segment.path in self.kept.removals]

    def build(self) -> CandidateTable:
        """Time, fit and try everything; what costs no less than what it replaces is dropped before it is fitted."""
        segments, costs = self.costs.segments, self.costs
        like = like_of(self.graph.model)
        specs, students, attentions = self._cheaper_candidates(like)
        fitted = self._fit(specs, like)
        trained, notes = self._train(students, like)
        # A closed form fits what comes before the tail, a student what comes behind it: each among its own.
        folds = self._fit_once(self._fold_specs(), like, fit_folded, "fitting folds")
        maps = self._fit_once(attentions, like, fit_linear_attentions, "fitting linear attentions")
        groups = [group for each in (fitted, trained, folds, maps) for group in _by_span(each)]
        candidates = [candidate for group in groups for candidate in self._pareto_filter(group)]
        changes = self._changes(candidates)
        refit = CandidateRefit(self.graph, segments, self.fit, self.refit) if self.refit is not None else None
        scorer = DamageScorer(self.graph, segments, self.judge, self.damage, changes, refit)
        with DamageMeter(scorer, self.cache, self.progress, self.workers).open() as meter:
            damages = meter.measure()
            edges, fitted_by_edge = self._edges(candidates, damages)
            units_by_edge = self._add_unit_edges(edges, damages)
            fixed = sum(self.depth_of(path) for path in self.graph.chain.paths if path not in segments.paths)
            table = CandidateTable(
                segments, edges, fitted_by_edge, costs.whole, costs.fixed, [], [], units_by_edge, fixed
            )
            table.pairs = measured_pairs(edges, table.change_names, meter)
        table.removal_damages = [
            RemovalDamage(segment.path, alone.raw, alone.interval, self.num_damage_samples)
            for segment in segments.segments
            if segment.path in self.kept.removals and (alone := damages[f"remove {segment.path}"])
        ]
        screened = [self.kept.note] if self.kept.note else []
        table.notes = [*screened, *_overfit_notes(candidates), *notes, *_refit_notes(refit, damages, table.pairs)]
        return table

    @property
    def num_damage_samples(self) -> int:
        """How many samples a damage is the mean of."""
        return sum(batch.size for batch in self.judge)

    def is_allowed(self, *paths: str) -> bool:
        """Whether the user lets these segments be touched."""
        return self.allowed is None or all(path in self.allowed for path in paths)

    def depth_of(self, path: str) -> int:
        """What a block counts where the depth is bounded: one, or its units where these may go alone."""
        return max(1, len(self.graph.chain[path].removable_units)) if self.units is not None else 1

    def _cheaper_candidates(
        self, like: torch.Tensor
    ) -> tuple[list[ReplacementSpec], list[StudentSpec], list[LinearAttentionSpec]]:
        """The closed forms, students and linear attentions that cost less than what they replace, once all is timed."""
        segments, costs = self.costs.segments, self.costs
        spans = self.kept.spans
        samples = sum(batch.size for batch in self.fit)
        specs = [
            spec
            for spec in self._useful(enumerate_candidates(spans, self.kinds))
            if _has_rows(spec, samples) and costs.can_be_cheaper(spec)
        ]
        students = [spec for spec in self._students(spans) if costs.can_be_cheaper(spec)]
        self.progress("what every kind of block costs", 0, 1)
        untrained = {spec.name: placed for spec, placed in _untrained([*specs, *students], like)}
        parts = {
            removal.name: PlacedModule(removal.module, removal.segment.in_shape, removal.segment.paths)
            for removal in self.unit_removals
        }
        attentions = self._linear_attentions()
        maps = {spec.name: _placed(spec) for spec in attentions}
        costs.measure({**untrained, **removal_candidates(self.graph, segments), **parts, **maps})
        # `untrained` holds as many weights as all students together: it must be gone before these learn.
        return (
            [spec for spec in specs if self._is_cheaper(spec.span, untrained[spec.name])],
            [spec for spec in students if self._is_cheaper(spec.span, untrained[spec.name])],
            [spec for spec in attentions if self._is_cheaper(spec.span, maps[spec.name])],
        )

    def _linear_attentions(self) -> list[LinearAttentionSpec]:
        """Of the blocks whose attention may be touched, where a goal has use for it: no depth is saved."""
        if LINEAR_ATTENTION not in self.kinds or self.depth_only:
            return []
        spans = find_spans(self.graph, self.costs.segments, 1)
        specs = linear_attention_specs(self.graph, self.costs.segments, [span for span in spans if self._is_kept(span)])
        units = self.units or {}
        return [
            spec
            for spec in specs
            if self.is_allowed(*spec.span.paths) or spec.unit in units.get(spec.span.paths[0], ())
        ]

    def _is_kept(self, span: Span) -> bool:
        return not self.is_screened or span in self.kept.spans

    def _useful(self, specs: Sequence[ReplacementSpec]) -> list[ReplacementSpec]:
        """Without those that a goal about the number of blocks alone has no use for.

        These are maps restricted to few parameters where a full one is tried too, and what is as deep as its span.
        """
        if not self.depth_only:
            return list(specs)
        full = {spec.span for spec in specs if not spec.type.restricted and spec.kind != "identity"}
        return [spec for spec in specs if self._is_shallower(spec) and not (spec.type.restricted and spec.span in full)]

    def _is_shallower(self, spec: ReplacementSpec) -> bool:
        segments = self.costs.segments.segments[spec.span.start : spec.span.stop]
        return spec.stand_in.depth < sum(segment.can_bound_span for segment in segments)

    def _students(self, spans: Sequence[Span]) -> list[StudentSpec]:
        """Every student, and those of two blocks that may follow a student of one block."""
        segments = self.costs.segments
        students = students_of(self.graph, segments, spans, self.kinds)
        doubles = [two_blocks(self.graph, spec.span, segments) for spec in students if spec.kind == "block"]
        return [*students, *(spec for spec in doubles if spec is not None)]

    def _train(self, specs: Sequence[StudentSpec], like: torch.Tensor) -> tuple[list[FittedReplacement], list[str]]:
        """The students, from the cache if they are there: all together, or they start over.

        Which spans get two blocks depends on how all the single ones did, and each portion on the budget of all.
        """
        if not specs:
            return [], []
        finished = next((line for line in self.cache.entries if line["kind"] == "students"), None)
        if finished is not None:
            specs = [spec for spec in specs if spec.name in finished["names"]]
            return self.cache.fitted(specs, like), finished["notes"]
        single_spans = {spec.span for spec in specs if spec.kind == "block"}
        doubles = {spec.span: spec for spec in specs if spec.kind == "block2" and spec.span in single_spans}
        trained = train_students(
            self.graph,
            self.fit,
            [spec for spec in specs if spec.span not in doubles or spec.kind != "block2"],
            doubles=doubles,
            budget=self.student_budget,
            answers=self.damage,
            on_progress=lambda done, total: self.progress(
                f"training {len(specs) - len(doubles)} students", done, total
            ),
        )
        names = [_name(student) for student in trained.fitted]
        self.cache.add_fitted(trained.fitted, names)
        self.cache.append({"kind": "students", "names": names, "notes": trained.notes})
        return trained.fitted, trained.notes

    def _is_cheaper(self, span: Span, placed: PlacedModule) -> bool:
        cost, replaced = self.costs.lookup(placed.module, placed.shape), self.costs.span(span)
        return any(quantity.of(cost) < (1 - MIN_SAVING) * quantity.of(replaced) for quantity in QUANTITIES.values())

    def _fit(self, specs: Sequence[ReplacementSpec], like: torch.Tensor) -> list[FittedReplacement]:
        by_name = {_name(fitted): fitted for fitted in self.cache.fitted(specs, like)}
        missing = [spec for spec in specs if spec.name not in by_name]

        def keep(fitted: list[FittedReplacement]) -> None:
            names = [_name(replacement) for replacement in fitted]
            self.cache.add_fitted(fitted, names)
            by_name.update(zip(names, fitted, strict=True))

        if self.workers.count > 1:
            self._fit_by_workers(missing, keep)
        else:
            self._fit_here(missing, keep)
        return [by_name[spec.name] for spec in specs]

    def _fit_here(self, specs: Sequence[ReplacementSpec], keep: Callable[[list[FittedReplacement]], None]) -> None:
        portions = split_by_memory(specs)
        for index, portion in enumerate(portions):

            def on_progress(done: int, of: int, index: int = index) -> None:
                self.progress(f"fitting {len(specs)} stand-ins", index * of + done, len(portions) * of)

            fit_all(self.graph, self.fit, portion, on_progress=on_progress, on_fitted=keep)

    def _fit_by_workers(
        self, specs: Sequence[ReplacementSpec], keep: Callable[[list[FittedReplacement]], None]
    ) -> None:
        portions = split_by_key(specs, _FITS_PER_WORKER * self.workers.count)
        tasks = [WorkerTask(tuple(spec.name for spec in portion)) for portion in portions]
        with working(self.workers, FitScorer(self.graph, self.fit, {spec.name: spec for spec in specs})) as results:
            for done, (_, fitted) in enumerate(results(tasks), 1):
                keep(fitted)
                self.progress(f"fitting {len(specs)} stand-ins", done, len(tasks))

    def _fit_once(
        self, specs: Sequence[_InBlockSpec], like: torch.Tensor, fit: Callable[..., list[FittedReplacement]], stage: str
    ) -> list[FittedReplacement]:
        """Maps inside blocks that stay, those that predict anything; what was fitted before is not fitted again."""
        by_name = {_name(fitted): fitted for fitted in self.cache.fitted(specs, like)}
        missing = [spec for spec in specs if spec.name not in by_name]
        if missing:
            fitted = fit(self.graph, self.fit, missing, on_progress=partial(self.progress, stage))
            self.cache.add_fitted(fitted, [_name(each) for each in fitted], self.graph.model)
            by_name |= {_name(each): each for each in fitted}
        return [each for spec in specs if (each := by_name[spec.name]).r2_held_out > _MIN_R2]

    def _fold_specs(self) -> list[FoldedSpec]:
        """The folds of all spans, and a few of longer ones: a fold costs its first block, however much it removes."""
        segments = self.costs.segments
        specs = folded_specs(self.graph, segments, self.kept.spans) if FOLDED in self.kinds else []
        if not specs or self.is_screened or self.longest < LONGEST:
            return specs
        spans = self._spans(len(segments.segments) // 2 + 1)
        longer = folded_specs(self.graph, segments, [span for span in spans if span.stop - span.start > self.longest])
        kept = least_influence(self.graph, segments, [spec.span for spec in longer], self.fit[0], _LONG_FOLDS)
        return [*specs, *(spec for spec in longer if spec.span in kept)]

    def _spans(self, longest: int) -> list[Span]:
        """Every span of up to so many segments that may be touched."""
        paths = self.costs.segments.paths
        spans = find_spans(self.graph, self.costs.segments, longest)
        return [span for span in spans if self.is_allowed(*paths[span.start : span.stop])]

    def _cost(self, fitted: FittedReplacement) -> Cost:
        if fitted.stand_in.folded:
            return self.costs.steps[fitted.span.paths[0]]
        return self.costs.lookup(fitted.module, fitted.span.in_shape)

    def _latency(self, fitted: FittedReplacement) -> float:
        return self._cost(fitted).latency_ms

    def _pareto_filter(self, group: Sequence[FittedReplacement]) -> list[FittedReplacement]:
        """Of the replacements for one span those that fit best, and cheaper ones that save clearly more."""
        if self.depth_only:
            return [max(group, key=lambda candidate: candidate.r2_held_out)]
        min_saving = MIN_SAVING * self.costs.span(group[0].span).latency_ms
        kept: list[FittedReplacement] = []
        for candidate in sorted(group, key=lambda candidate: -candidate.r2_held_out):
            latency_ms = self._latency(candidate)
            if all(latency_ms < self._latency(better) - min_saving for better in kept):
                kept.append(candidate)
        return kept

    def _edges(
        self, candidates: list[FittedReplacement], damages: Mapping[str, ChangeDamage]
    ) -> tuple[list[Edge], dict[int, FittedReplacement]]:
        segments, costs = self.costs.segments, self.costs
        edges: list[Edge] = []
        fitted_by_edge: dict[int, FittedReplacement] = {}
        for index, segment in enumerate(segments.segments):
            depth = self.depth_of(segment.path) if segment.residual else int(segment.can_bound_span)
            step = _Step(index, index + 1, "keep", depth=depth)
            edges.append(_edge(step, None, costs.steps[segment.path]))
            if segment.path in self.kept.removals and self.is_allowed(segment.path):
                shortcut = costs.lookup(self.graph.shortcut_modules[segment.path], segment.in_shape)
                step = _Step(index, index + 1, "remove", depth=0)
                edges.append(_edge(step, damages[f"remove {segment.path}"], shortcut))
        for candidate in candidates:
            fitted_by_edge[len(edges)] = candidate
            span = candidate.span
            copies = candidate.stand_in.copies
            depth = sum(map(self.depth_of, copies)) if copies else candidate.stand_in.depth
            step = _Step(span.start, span.stop, "replace", candidate.kind, depth)
            edges.append(_edge(step, damages[_name(candidate)], self._cost(candidate)))
        return edges, fitted_by_edge

    def _add_unit_edges(self, edges: list[Edge], damages: Mapping[str, ChangeDamage]) -> dict[int, tuple[Remove, ...]]:
        """Add the removals of single units; returns what each of these edges removes, by its index."""
        units_by_edge = {}
        for removal in self.unit_removals:
            segment, index = removal.segment, self.costs.segments.paths.index(removal.segment.path)
            units_by_edge[len(edges)] = removal.removals
            kind = "".join(f"#{unit}" for unit in removal.units)
            step = _Step(index, index + 1, "remove", kind, self.depth_of(segment.path) - len(removal.units))
            cost = self.costs.lookup(removal.module, segment.in_shape)
            edges.append(_edge(step, damages[removal.name], cost))
        return units_by_edge

    def _changes(self, candidates: list[FittedReplacement]) -> dict[str, PlacedChange]:
        """Everything that can be done to the network, by name."""
        segments = self.costs.segments
        removals = [
            removal_change(self.graph, segments, index)
            for index, segment in enumerate(segments.segments)
            if segment.path in self.kept.removals
        ]
        for removal in self.unit_removals:
            index = segments.paths.index(removal.segment.path)
            removals.append(PlacedChange(removal.name, index, index + 1, removal.forwards))
        replacements = [replacement_change(self.graph.model, candidate) for candidate in candidates]
        return {change.name: change for change in (*removals, *replacements)}


def check_kinds(kinds: Sequence[str]) -> None:
    """Refuse a kind of replacement that does not exist.

    Raises:
        UsageError: names those there are.
    """
    kinds_known = (*REPLACEMENTS, FOLDED, LINEAR_ATTENTION, *STUDENTS)
    unknown = next((kind for kind in kinds if kind not in kinds_known), None)
    if unknown is not None:
        raise UsageError(f"no stand-in is called '{unknown}'", f"There are {', '.join(kinds_known)}.")


def enumerate_candidates(spans: Sequence[Span], kinds: Sequence[str]) -> list[ReplacementSpec]:
    """Every closed-form replacement of these kinds that suits a span and is not too wide to be fitted."""
    return [
        ReplacementSpec(span, kind)
        for span in spans
        for kind in kinds
        if kind in REPLACEMENTS
        if REPLACEMENTS[kind].supports(span) and span.in_channels * REPLACEMENTS[kind].kernel ** 2 <= MAX_UNKNOWNS
    ]


def removal_candidates(graph: BlockGraph, segments: SegmentChain) -> dict[str, PlacedModule]:
    """What remains of each residual block without its branches."""
    return {
        segment.path: PlacedModule(graph.shortcut_modules[segment.path], segment.in_shape, segment.paths)
        for segment in segments.segments
        if segment.residual
    }


def timed_modules(
    graph: BlockGraph, segments: SegmentChain, kinds: Sequence[str], longest: int
) -> dict[str, PlacedModule]:
    """Everything but the segments that a plan might need the time of, by name."""
    specs = enumerate_candidates(find_spans(graph, segments, longest), kinds)
    untrained = {spec.name: placed for spec, placed in _untrained(specs, like_of(graph.model))}
    return {**untrained, **removal_candidates(graph, segments)}


def _untrained(
    specs: Sequence[ReplacementSpec | StudentSpec], like: torch.Tensor
) -> list[tuple[ReplacementSpec | StudentSpec, PlacedModule]]:
    """A module for each; those that are the same as data are made once."""
    modules: dict[Replacement, nn.Module] = {}
    placed = []
    for spec in specs:
        replacement, span = spec.stand_in, spec.span
        if replacement not in modules:
            modules[replacement] = build_replacement(replacement, like, spec.original)
        placed.append((spec, PlacedModule(modules[replacement], span.in_shape, span.paths, span.output_formats)))
    return placed


def _placed(spec: LinearAttentionSpec) -> PlacedModule:
    return PlacedModule(spec.block_with(spec.attention_map()), spec.span.in_shape, spec.span.paths)


def _has_rows(spec: ReplacementSpec, samples: int) -> bool:
    """Whether a wide map has more rows to be fitted on than unknowns; a narrow one does well with few, by its ridge."""
    positions = math.prod(spec.span.out_shape[1:] if spec.span.layout == "channels_first" else spec.span.out_shape[:-1])
    return spec.unknowns <= _MAX_UNKNOWNS_WITH_FEW_ROWS or samples * positions > spec.unknowns


def _by_span(fitted: Sequence[FittedReplacement]) -> list[list[FittedReplacement]]:
    groups: dict[tuple[Span, int], list[FittedReplacement]] = {}
    for replacement in fitted:
        # Students of fewer blocks are for who counts blocks, though others may fit better and be faster.
        groups.setdefault((replacement.span, len(replacement.stand_in.copies)), []).append(replacement)
    return list(groups.values())


def _overfit_notes(candidates: Sequence[FittedReplacement]) -> list[str]:
    closed_forms = [candidate for candidate in candidates if not candidate.stand_in.student]
    overfit = sum(candidate.r2_fit - candidate.r2_held_out > _MAX_R2_GAP for candidate in closed_forms)
    if not overfit:
        return []
    return [f"{overfit} stand-ins were fitted on too little data: held-out R2 far below the fit's"]


def _refit_notes(
    refit: CandidateRefit | None, damages: Mapping[str, ChangeDamage], pairs: Sequence[PairTerm]
) -> list[str]:
    if refit is None:
        return []
    if not refit.applies:
        return ["damages in the table are those without a refit: the network has no map that can be refitted cheaply"]
    missing = sum(damage.refitted is None for damage in damages.values())
    raw = f"; {missing} of {len(damages)} changes could not be refitted and count as they are" if missing else ""
    return [f"damages in the table are those after {refit.description}{raw}; {len(pairs)} pairs were measured together"]


def _name(fitted: FittedReplacement) -> str:
    return f"{fitted.kind} {fitted.span.name}"


@dataclass(frozen=True)
class _Step:
    """An edge but for its damage and cost."""

    start: int
    stop: int
    action: Literal["keep", "remove", "replace"]
    kind: str = ""
    depth: int = 1


def _edge(step: _Step, damage: ChangeDamage | None, cost: Cost) -> Edge:
    least, raw = (damage.least, damage.raw) if damage is not None else (0.0, 0.0)
    return Edge(**asdict(step), damage=max(0.0, least), raw_damage=max(0.0, raw), **asdict(cost))
