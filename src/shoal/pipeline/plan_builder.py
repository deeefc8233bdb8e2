"""Plans made into networks: built, refitted, and how far each is off."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from shoal.batches import Batch, call
from shoal.blocks import BlockGraph, analyze
from shoal.measure import Reading
from shoal.pipeline.candidate_table import CandidateTable
from shoal.pipeline.data_splits import split_samples
from shoal.plan import Path, Remove, Replace
from shoal.preserve import copied, evaluating
from shoal.replace import FittedReplacement, RefitConfig, recalibrate_, refit_
from shoal.scanning import DamageFunction, OutputDamage, divergence
from shoal.surgery import remove_blocks_
from shoal.surgery.replace import replace_spans_

Progress = Callable[[str, int, int], None]

# Samples of a refit that only tells plans apart.
_PART = 1024


@dataclass(frozen=True)
class RefinedPlan:
    """The network that a plan comes to.

    Args:
        network: in eval mode.
        refitted: damage after the best refit.
        damage: of the network.
        said: what was tried, in one sentence.
    """

    network: nn.Module
    refitted: float
    damage: float
    said: str


@dataclass
class PlanBuilder:
    """Builds the networks of plans.

    Args:
        anatomy: the original, dissected.
        model: the original, to copy.
        tables: see TableMaker.
        fit_on: mini-batches to refit on.
        judge_on: other mini-batches, to measure damage on.
        damage: what a change does to the output, for each sample.
        progress: called with (stage, done, total).
    """

    anatomy: BlockGraph
    model: nn.Module
    tables: CandidateTable
    fit_on: Sequence[Batch]
    judge_on: Sequence[Batch]
    damage: DamageFunction = divergence
    progress: Progress = lambda stage, done, total: None

    @property
    def reading(self) -> Reading | None:
        """How outputs are read, where the damage knows."""
        return self.damage.reading if isinstance(self.damage, OutputDamage) else None

    def build(self, path: Path) -> nn.Module:
        """A copy of the original with the path's changes."""
        anatomy = analyze(copied(self.model).eval(), self.fit_on[0].take(2))
        spans = [one for one in self.actions(path) if isinstance(one, Replace)]
        fitted = {one.span.paths[0]: copied(one.module) for one in self.stand_ins(path)}
        replace_spans_(anatomy, spans, fitted)
        remove_blocks_(anatomy, self._removed(path))
        return anatomy.model.eval()

    def actions(self, path: Path) -> list[Remove | Replace]:
        """The path as actions of a plan."""
        found: list[Remove | Replace] = []
        for index in path.edges:
            edge = self.tables.edges[index]
            if edge.action == "remove":
                found.append(Remove(path=self.tables.line.paths[edge.start]))
            elif edge.action == "replace":
                fitted = self.tables.fitted[index]
                found.append(Replace(paths=list(fitted.span.paths), stand_in=fitted.stand_in))
        return found

    def stand_ins(self, path: Path) -> list[FittedReplacement]:
        """Those of a path, as they were fitted."""
        return [self.tables.fitted[index] for index in path.edges if index in self.tables.fitted]

    def _removed(self, path: Path) -> list[str]:
        return [one.path for one in self.actions(path) if isinstance(one, Remove)]

    def damage_of(self, network: nn.Module) -> float:
        """Mean damage on the samples held back for judging."""
        total, count = 0.0, 0
        with evaluating(self.anatomy.model), evaluating(network):
            for batch in self.judge_on:
                original = call(self.anatomy.model, batch)
                total += float(self.damage(original, call(network, batch), batch).sum())
                count += batch.size
        return total / count

    def refitted(self, path: Path) -> nn.Module:
        """Built, and refitted on a part of the samples."""
        part, _ = split_samples(self.fit_on, _PART)
        stand_ins, removed = self.stand_ins(path), self._removed(path)
        return refit_(self.anatomy, self.build(path), stand_ins, part, removed=removed)

    def best_of(self, path: Path) -> RefinedPlan:
        """The network as it was built, refitted, with norms recalibrated: whichever does least damage."""
        stand_ins = self.stand_ins(path)
        removed = self._removed(path)
        built = self.build(path)
        variants: list[tuple[str, nn.Module]] = [("built", built)]
        if stand_ins or removed:
            for name, kept in (("stand-ins refitted", False), ("kept blocks refitted too", True)):
                twin = refit_(
                    self.anatomy,
                    copied(built),
                    stand_ins,
                    self.fit_on,
                    removed=removed,
                    config=RefitConfig(kept_segments=kept),
                    on_progress=lambda done, of, name=name: self.progress(name, done, of),  # type: ignore[misc]
                )
                variants.append((name, twin))
        damages = {name: self.damage_of(network) for name, network in variants}
        least = min(damages, key=damages.__getitem__)
        if least != "kept blocks refitted too":  # these have norms that belong to weights set anew
            self.progress("recalibrating batch norms", 0, 1)
            calibrated = recalibrate_(copied(dict(variants)[least]), self.fit_on)
            variants.append(("norms recalibrated", calibrated))
            damages["norms recalibrated"] = self.damage_of(calibrated)
        final = min(damages, key=damages.__getitem__)
        refitted = min(damages.get(name, math.inf) for name, _ in variants[1:]) if variants[1:] else damages["built"]
        listed = ", ".join(f"{damages[name]:.4f} {name}" for name, _ in variants)
        said = f"damage on held-back samples: {path.damage:.4f} by the table, {listed}; kept: {final}"
        return RefinedPlan(dict(variants)[final], refitted, damages[final], said)
