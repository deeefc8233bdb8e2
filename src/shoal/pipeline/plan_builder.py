"""Plans made into networks: built from the analysed graph, refitted, and how far each is from the original."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import cast

from torch import nn

from shoal.batches import Batch
from shoal.blocks import BlockGraph
from shoal.measure import Reading
from shoal.pipeline.candidate_table import CandidateTable
from shoal.pipeline.data_splits import split_samples
from shoal.pipeline.effort import Effort
from shoal.pipeline.refinement import HeldBackDamage, Refinement
from shoal.plan import Path, Remove, Replace
from shoal.preserve import shared_copy
from shoal.replace import FittedReplacement, RefitConfig, refit_
from shoal.scanning import DamageFunction, OutputDamage, divergence
from shoal.surgery import remove_blocks_
from shoal.surgery.replace import replace_spans_

Progress = Callable[[str, int, int], None]

MAX_NETWORKS = 4
"""How many networks are kept in memory for plans that are asked for again."""
MAX_NETWORK_BYTES = 4e9
"""How many bytes of weights they may have together; of larger networks only the last is kept."""


@dataclass(frozen=True)
class RefinedPlan:
    """The network that a plan comes to.

    Args:
        network: in eval mode.
        refit_damage: the damage after the best refit.
        damage: the damage of `network`.
        note: what was tried, in one sentence.
    """

    network: nn.Module
    refit_damage: float
    damage: float
    note: str


@dataclass
class PlanBuilder:
    """Builds the networks of plans.

    Args:
        graph: of the original.
        tables: see CandidateBuilder.
        fit: mini-batches to refit on.
        judge: other mini-batches, to measure damage on.
        damage: how far outputs are from the original's, for each sample.
        progress: called with (stage, done, total).
        effort: how much is spent on telling plans apart.
    """

    graph: BlockGraph
    tables: CandidateTable
    fit: Sequence[Batch]
    judge: Sequence[Batch]
    damage: DamageFunction = divergence
    progress: Progress = lambda stage, done, total: None
    effort: Effort = field(default_factory=Effort)
    _networks: OrderedDict[tuple[str, tuple[int, ...]], nn.Module] = field(default_factory=OrderedDict, init=False)

    @property
    def reading(self) -> Reading | None:
        """How outputs are read, where the damage knows."""
        return self.damage.reading if isinstance(self.damage, OutputDamage) else None

    def actions(self, path: Path) -> list[Remove | Replace]:
        """The path as actions of a plan."""
        actions: list[Remove | Replace] = []
        for index in path.edges:
            edge = self.tables.edges[index]
            actions += self.tables.removals(index)
            if edge.action == "replace":
                fitted = self.tables.fitted_by_edge[index]
                actions.append(Replace(paths=list(fitted.span.paths), stand_in=fitted.stand_in))
        return actions

    def replacements(self, path: Path) -> list[FittedReplacement]:
        """The replacements of a path, as they were fitted."""
        return [self.tables.fitted_by_edge[index] for index in path.edges if index in self.tables.fitted_by_edge]

    def network(self, path: Path) -> nn.Module:
        """The path's network, to look at: it is kept for the next call, so `build` gives one that may be changed."""
        return self._memoized("built", path, self.build)

    def build(self, path: Path) -> nn.Module:
        """A copy of the original with the path's changes, made from the graph of the original without a new trace.

        Weights that are not set anew lie where the original's do, see `shared_copy`.
        """
        kept = self._networks.get(("built", path.edges))
        if kept is not None:
            return shared_copy(kept)
        graph = _copy_graph(self.graph, self._removed(path))
        spans = [action for action in self.actions(path) if isinstance(action, Replace)]
        modules = {fitted.span.paths[0]: shared_copy(fitted.module) for fitted in self.replacements(path)}
        replace_spans_(graph, spans, modules, segments=self.tables.segments)
        remove_blocks_(graph, self._removed(path))
        return graph.model.eval()

    def quick_refit(self, path: Path) -> nn.Module:
        """The path's network refitted on a part of the samples, to look at as that of `network`."""
        return self._memoized("refitted", path, self._quick_refit)

    def damage_of(self, network: nn.Module) -> float:
        """Mean damage on the samples held back for judging."""
        return self._held_back.damage_of(network)

    def refine(self, path: Path) -> RefinedPlan:
        """The network of least damage: as it was built, refitted, with norms recalibrated; see `Refinement`."""

        def build() -> nn.Module:
            network = self.build(path)
            self._networks.clear()  # room for those that are compared
            return network

        refined = self._refinement.best(build, self.replacements(path), self._removed(path), self.effort.reach)
        note = f"damage on held-back samples: {path.damage:.4f} by the table, {refined}"
        return RefinedPlan(refined.network, refined.refit_damage, refined.damages[refined.kept], note)

    @cached_property
    def _held_back(self) -> HeldBackDamage:
        return HeldBackDamage(self.graph, self.judge, self.damage)

    @property
    def _refinement(self) -> Refinement:
        return Refinement(self.graph, self.fit, self._held_back, self.progress)

    def _removed(self, path: Path) -> list[str]:
        return [action.name for action in self.actions(path) if isinstance(action, Remove)]

    def _quick_refit(self, path: Path) -> nn.Module:
        samples, _ = split_samples(self.fit, self.effort.refit_samples)
        config = RefitConfig(reach=self.effort.reach)
        return refit_(
            self.graph, self.build(path), self.replacements(path), samples, removed=self._removed(path), config=config
        )

    def _memoized(self, stage: str, path: Path, make: Callable[[Path], nn.Module]) -> nn.Module:
        key = stage, path.edges
        network = self._networks.pop(key, None)
        while len(self._networks) >= self._capacity:  # before another is made
            self._networks.popitem(last=False)
        self._networks[key] = make(path) if network is None else network
        return self._networks[key]

    @cached_property
    def _capacity(self) -> int:
        """How many networks are kept, each about the size of the original."""
        size = sum(parameter.numel() * parameter.element_size() for parameter in self.graph.model.parameters())
        return max(1, min(MAX_NETWORKS, int(MAX_NETWORK_BYTES / max(1, size))))


def _copy_graph(graph: BlockGraph, removed: Sequence[str]) -> BlockGraph:
    """The graph of a copy of its network, with the shortcuts of the blocks that go, for surgery: nothing is traced.

    They are copied together, as the shortcuts share parameters with the network.
    """
    whole = [path for path in removed if path in graph.shortcut_modules]
    modules = nn.ModuleList([graph.model, *(graph.shortcut_modules[path] for path in whole)])
    network, *shortcuts = cast(nn.ModuleList, shared_copy(modules))
    return replace(
        graph,
        model=network,
        shortcut_modules=dict(zip(whole, shortcuts, strict=True)),
        unit_stub_cache=copy.deepcopy(graph.unit_stub_cache) if len(whole) < len(removed) else {},
    )
