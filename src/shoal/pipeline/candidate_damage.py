"""The damage of candidate changes on held-back samples: as they are, and after the cheapest refit.

Both run the network from the first changed module on, with everything before it from a cache. What is measured goes
into the measurement cache mini-batch by mini-batch, under the name of the change.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shoal.batches import Batch
from shoal.blocks import BlockGraph
from shoal.blocks.prefix_cache import Forward, PrefixCache
from shoal.errors import DataError, NonFiniteError
from shoal.measure import mean_interval
from shoal.pipeline.cache import DamageKind, MeasurementCache
from shoal.pipeline.candidate_refit import CandidateRefit, PlacedChange
from shoal.preserve import evaluating
from shoal.record import Interval
from shoal.replace import SegmentChain
from shoal.scanning import DamageFunction

# Refitted layers of so many candidates are held at a time, in bytes.
_HELD = 2e8

Combination = Sequence[PlacedChange]
_Run = tuple[str, Mapping[nn.Module, Forward]]
_Values = dict[str, dict[int, list[float]]]


@dataclass(frozen=True)
class ChangeDamage:
    """Of one change: its mean `raw` damage with the interval of that, and the mean after a refit, if there is one.

    A refit that makes it worse is not made, neither here nor when a plan is built.
    """

    raw: float
    interval: Interval
    refitted: float | None = None

    @property
    def least(self) -> float:
        """The damage that the table takes it to have."""
        return self.raw if self.refitted is None else min(self.raw, self.refitted)


@dataclass
class DamageMeter:
    """Measures damages of one network on the same samples.

    Args:
        graph: of the original.
        segments: of the original.
        judge: mini-batches of samples that nothing is fitted on.
        cache: keeps what is measured.
        damage: how far outputs are from the original's, for each sample.
        progress: called with (stage, done, total).
    """

    graph: BlockGraph
    segments: SegmentChain
    judge: Sequence[Batch]
    cache: MeasurementCache
    damage: DamageFunction
    progress: Callable[[str, int, int], None]

    def measure(self, changes: Sequence[PlacedChange], refit: CandidateRefit | None) -> dict[str, ChangeDamage]:
        """The damage of each change alone, by its name."""
        raw = self.alone(changes)
        applies = refit is not None and refit.applies
        refitted = self.refitted({change.name: [change] for change in changes}, refit) if refit and applies else {}
        return {
            name: ChangeDamage(
                float(samples.mean()),
                mean_interval(samples),
                float(refitted[name].mean()) if name in refitted else None,
            )
            for name, samples in raw.items()
        }

    def alone(self, changes: Sequence[PlacedChange]) -> dict[str, Tensor]:
        """The damage of each change alone, for every sample, by its name."""
        values = self.cache.damages()
        runs = {change.name: (self._start(change), change.forwards) for change in changes}
        prefix, batches = PrefixCache(self.graph), len(self.judge)
        with evaluating(self.graph.model):
            for index, batch in enumerate(self.judge):
                remaining = {name: run for name, run in runs.items() if index not in values.get(name, {})}
                if not remaining:
                    continue
                original, damages = prefix.record(batch), {}
                for done, (name, run) in enumerate(remaining.items(), 1):
                    damages[name] = self._run(prefix, original, index, run)
                    stage, total = f"damage of {len(remaining)} changes", len(remaining)
                    self.progress(stage, index * total + done, batches * total)
                self._keep(index, damages, values, "damage")
        return {name: self._samples(values[name]) for name in runs}

    def refitted(self, combinations: Mapping[str, Combination], refit: CandidateRefit) -> dict[str, Tensor]:
        """The damage of changes together after a refit, for every sample; left out where a refit does not apply.

        Args:
            combinations: changes that are made together, in order, by name.
            refit: of this network.
        """
        values, prefix = self.cache.damages("refitted"), PrefixCache(self.graph)
        total, done = len(self.judge), 0
        remaining = {name: group for name, group in combinations.items() if len(values.get(name, {})) < total}
        for portion in self._portions(remaining, refit):
            with evaluating(self.graph.model):
                for index, batch in enumerate(self.judge):
                    original = prefix.record(batch)
                    self._keep(index, self._finite(prefix, original, index, portion), values, "refitted")
            done += len(portion)
            self.progress(f"damage of {len(remaining)} changes after a refit", done, len(remaining))
        complete = [name for name in combinations if len(values.get(name, {})) == total]
        return {name: self._samples(values[name]) for name in complete}

    def _keep(self, index: int, damages: dict[str, list[float]], values: _Values, kind: DamageKind) -> None:
        self.cache.add_damages(index, damages, kind)
        for name, measured in damages.items():
            values.setdefault(name, {})[index] = measured

    def _portions(self, remaining: Mapping[str, Combination], refit: CandidateRefit) -> Iterator[dict[str, _Run]]:
        """What was refitted and is to be measured, as much at a time as memory holds."""
        portion: dict[str, _Run] = {}
        held = 0
        for number, (name, group) in enumerate(remaining.items()):
            self.progress(f"refitting {len(remaining)} changes", number, len(remaining))
            try:
                result = refit.refitted(group)
            except (DataError, NonFiniteError):
                continue
            portion[name] = self._start(group[0]), result.forwards
            held += result.bytes
            if held > _HELD:
                yield portion
                portion, held = {}, 0
        if portion:
            yield portion

    def _finite(
        self, prefix: PrefixCache, original: object, index: int, portion: Mapping[str, _Run]
    ) -> dict[str, list[float]]:
        """The damages on one mini-batch, without those of networks whose answers are not finite after the refit."""
        damages = {}
        for name, run in portion.items():
            try:
                damages[name] = self._run(prefix, original, index, run)
            except NonFiniteError:
                continue
        return damages

    def _run(self, prefix: PrefixCache, original: object, index: int, run: _Run) -> list[float]:
        start, forwards = run
        output = prefix.run_from(prefix.segment_of(start), forwards)
        damages: list[float] = self.damage(original, output, self.judge[index]).detach().cpu().tolist()
        return damages

    def _samples(self, by_batch: Mapping[int, list[float]]) -> Tensor:
        return torch.tensor([value for index in range(len(self.judge)) for value in by_batch[index]])

    def _start(self, change: PlacedChange) -> str:
        return self.segments.paths[change.start]
