"""Ablations as tasks: some candidates on one mini-batch, scored against the unchanged network wherever it is run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch

from shoal.batches import Batch, device_of
from shoal.blocks import BlockGraph
from shoal.blocks.prefix_cache import PrefixCache
from shoal.measure import Accumulator, BatchPredictions, Reading, read_predictions
from shoal.measure.output_reading import check_pairing
from shoal.preserve import evaluating
from shoal.scanning.batched_candidates import stacking_agrees
from shoal.scanning.candidates import Candidate
from shoal.scanning.sweep import outputs_of


@dataclass(frozen=True)
class Portion:
    """Candidates, by key, that are run on mini-batch number `index`."""

    index: int
    keys: tuple[str, ...]


@dataclass(frozen=True)
class PortionSums:
    """What came of a portion: the sums of each candidate and of the unchanged network, over that mini-batch alone."""

    unchanged: Accumulator
    by_candidate: dict[str, Accumulator]
    classes: int | None


def split_by_cost(graph: BlockGraph, candidates: Sequence[Candidate], parts: int) -> list[list[Candidate]]:
    """Up to `parts` portions of candidates that start at neighbouring blocks, each about as much work.

    A run starts in front of the changed module, so late candidates cost less, and more of them make a portion.
    """
    prefix = PrefixCache(graph)
    places = {segment: place for place, segment in enumerate(prefix.order)}
    length = max(1, len(places))
    starts = {candidate.key: places[_start(prefix, candidate)] for candidate in candidates}
    ordered = sorted(candidates, key=lambda candidate: starts[candidate.key])
    costs = list(accumulate(1 - starts[candidate.key] / length for candidate in ordered))
    portions: list[list[Candidate]] = [[] for _ in range(parts)]
    for candidate, cost in zip(ordered, costs, strict=True):
        portions[min(parts - 1, int(parts * (cost - 1e-9) / costs[-1]))].append(candidate)
    return [portion for portion in portions if portion]


def _start(prefix: PrefixCache, candidate: Candidate) -> str:
    segment = prefix.segment_of(candidate.path)
    return prefix.restarts.get(segment, segment)


@dataclass(eq=False)
class AblationScorer:
    """Runs portions. It is what workers hold: pickled, it brings the network, its analysis and the candidates along.

    Args:
        graph: the analysed network; it is left as it was.
        reading: how outputs are read.
        candidates: all there are.
        stack: how many removals share a forward.
    """

    graph: BlockGraph
    reading: Reading
    candidates: Sequence[Candidate]
    stack: int = 1
    _recorded: "_Recorded | None" = field(default=None, init=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was recorded of a mini-batch."""
        return {**vars(self), "_recorded": None}

    def __call__(self, portion: Portion, batch: Batch) -> PortionSums:
        """The sums of the candidates of a portion on its mini-batch.

        Raises:
            NonFiniteError, ModelRaisedError, DataError: as the network behaves.
        """
        with evaluating(self.graph.model):
            recorded = self._record(portion.index, batch)
            by_key = {candidate.key: candidate for candidate in self.candidates}
            active = [by_key[key] for key in portion.keys]
            sums = {
                candidate.key: recorded.compared(self.reading, output)
                for candidate, output in self._outputs(recorded, active)
            }
        return PortionSums(recorded.unchanged, {key: sums[key] for key in portion.keys}, recorded.classes)

    def _record(self, index: int, batch: Batch) -> "_Recorded":
        """The unchanged network on this mini-batch; the same as before where the mini-batch is."""
        if self._recorded is None or self._recorded.index != index:
            self._recorded = None  # before the next is made: both might not fit
            self._recorded = _Recorded.of(index, self.graph, self.reading, batch.to(device_of(self.graph.model)))
        return self._recorded

    def _outputs(self, recorded: "_Recorded", active: Sequence[Candidate]) -> Iterator[tuple[Candidate, Any]]:
        if self.stack > 1:
            paths = [candidate.path for candidate in active if candidate.ablation == "block"]
            if paths and not stacking_agrees(self.graph, {}, recorded.batch, paths, self.stack):
                self.stack = 1
        yield from outputs_of(self.graph, recorded.prefix, active, self.stack)


@dataclass(frozen=True, eq=False)
class _Recorded:
    """The unchanged network on one mini-batch: its outputs, what they say, and the prefix of every block."""

    index: int
    batch: Batch
    prefix: PrefixCache
    original: dict[str, torch.Tensor]
    predictions: BatchPredictions | None
    unchanged: Accumulator

    @classmethod
    def of(cls, index: int, graph: BlockGraph, reading: Reading, batch: Batch) -> "_Recorded":
        prefix = PrefixCache(graph)
        original = reading.tensors(prefix.record(batch), batch)
        classes = reading.classes
        predictions = None
        if classes is not None:
            scores = classes.scores(original[classes.name])
            predictions = read_predictions(scores, batch.target, batch, classes.axis)
        recorded = cls(index, batch, prefix, original, predictions, Accumulator())
        recorded._add(recorded.unchanged, reading, original)
        return recorded

    @property
    def classes(self) -> int | None:
        """How many there are."""
        return int(self.predictions.log_probs.shape[-1]) if self.predictions is not None else None

    def compared(self, reading: Reading, output: Any) -> Accumulator:
        """The sums of a changed network with this output."""
        sums = Accumulator()
        self._add(sums, reading, reading.tensors(output, self.batch))
        return sums

    def _add(self, sums: Accumulator, reading: Reading, tensors: dict[str, torch.Tensor]) -> None:
        classes = reading.classes
        if classes is None or self.predictions is None:
            sums.add_damage(reading.damage_between(self.original, tensors, self.batch))
        else:
            check_pairing(classes, self.original[classes.name], tensors[classes.name])
            scores = classes.scores(tensors[classes.name])
            sums.add(self.predictions, scores, self.batch.target, self.batch, classes.axis)
