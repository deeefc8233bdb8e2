"""A changed network refitted in several ways: the one that does least damage to samples held back is kept."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from shoal.batches import Batch, call
from shoal.blocks import BlockGraph
from shoal.outputs import read_outputs
from shoal.preserve import evaluating, shared_copy
from shoal.replace import FittedReplacement, RefitConfig, has_statistics, recalibrate_, refit_
from shoal.replace.kv_cache import without_kv_cache
from shoal.scanning import DamageFunction, divergence

STAND_INS, EVERYTHING, NORMS = "stand-ins refitted", "kept blocks refitted too", "norms recalibrated"
_BUILT = "built"


@dataclass(frozen=True)
class Refined:
    """What came of it.

    Args:
        network: the best, in eval mode.
        damages: of every network that was tried, by what was done to it.
        kept: what was done to the best.
    """

    network: nn.Module
    damages: dict[str, float]
    kept: str

    @property
    def refit_damage(self) -> float:
        """The damage after the best refit."""
        return min((damage for name, damage in self.damages.items() if name != _BUILT), default=math.inf)

    @property
    def is_changed(self) -> bool:
        """Whether anything is better than the network as it was built."""
        return self.kept != _BUILT

    def __str__(self) -> str:
        listed = ", ".join(f"{damage:.4f} {name}" for name, damage in self.damages.items())
        return f"{listed}; kept: {self.kept}"


@dataclass
class HeldBackDamage:
    """Measures how far networks are from the original, on samples held back.

    Args:
        graph: of the original.
        batches: nothing is fitted on them.
        damage: how far outputs are from the original's, for each sample.
        memory: bytes for what the original answers; what does not fit is computed anew for every network.
    """

    graph: BlockGraph
    batches: Sequence[Batch]
    damage: DamageFunction = divergence
    memory: float = 1e9
    _answers: dict[int, Any] = field(default_factory=dict, init=False)
    _free: float = field(init=False)

    def __post_init__(self) -> None:
        self._free = self.memory

    def damage_of(self, network: nn.Module) -> float:
        """Mean damage of a network."""
        total, count = 0.0, 0
        with evaluating(self.graph.model), evaluating(network):
            for index, batch in enumerate(self.batches):
                total += float(self.damage(self._answer(index), call(network, batch), batch).sum())
                count += batch.size
        return total / count

    def _answer(self, index: int) -> Any:
        """What the original answers to a mini-batch, kept where there is room."""
        if index not in self._answers:
            with without_kv_cache(self.graph.model):
                answer = call(self.graph.model, self.batches[index])
            size = sum(tensor.numel() * tensor.element_size() for tensor in read_outputs(answer).tensors.values())
            if size > self._free:
                return answer
            self._answers[index] = answer
            self._free -= size
        return self._answers[index]


@dataclass(frozen=True)
class Refinement:
    """How to refit, and how to judge.

    Args:
        graph: of the original.
        fit: mini-batches to refit on.
        judge: measures what came of it.
        progress: called with (stage, done, total).
    """

    graph: BlockGraph
    fit: Sequence[Batch]
    judge: HeldBackDamage
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None

    def best(
        self,
        build: Callable[[], nn.Module],
        replacements: Sequence[FittedReplacement],
        removed: Collection[str],
        reach: int | None = None,
    ) -> Refined:
        """The network as it was built, refitted, with batch norms recalibrated: whichever does least damage.

        Two of them at most lie in memory, the best one and the next.

        Args:
            build: makes the changed network, each time anew.
            replacements: those in it.
            removed: names of the blocks and units that are not in it.
            reach: of a further refit, of so many kept blocks behind each change; None: of none.
        """
        best, kept = build(), _BUILT
        damages = {_BUILT: self.judge.damage_of(best)}

        def judged(name: str, network: nn.Module) -> None:
            nonlocal best, kept
            damages[name] = self.judge.damage_of(network)
            if damages[name] < damages[kept]:
                best, kept = network, name

        for name, config in _refits(reach, bool(replacements)) if replacements or removed else []:
            progress = partial(self.progress, name)
            network = build()
            refit_(self.graph, network, replacements, self.fit, removed=removed, config=config, on_progress=progress)
            judged(name, network)
        if kept != EVERYTHING and has_statistics(best):  # the former has norms that belong to weights set anew
            self.progress("recalibrating batch norms", 0, 1)
            judged(NORMS, recalibrate_(shared_copy(best), self.fit))
        return Refined(best, damages, kept)


def _refits(reach: int | None, stand_ins: bool) -> list[tuple[str, RefitConfig]]:
    """The refits that are compared, each by its name."""
    return [
        *([(STAND_INS, RefitConfig(kept_segments=False))] if stand_ins else []),
        (EVERYTHING, RefitConfig()),
        *([("kept blocks behind a change refitted", RefitConfig(reach=reach))] if reach is not None else []),
    ]
