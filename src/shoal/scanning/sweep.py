"""Run every candidate ablation on every mini-batch: exact, at about half the cost of whole forwards.

Each mini-batch runs through the unchanged network once, and then for every candidate from that candidate on (see
`blocks.prefix_cache`). Candidates may also share a forward on the batch axis (see `batched_candidates`).
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from shoal.batches import Batch, batches, call, device_of
from shoal.blocks import BlockGraph
from shoal.blocks.module_replacements import module_replacements
from shoal.blocks.prefix_cache import Forward, PrefixCache
from shoal.errors import DataError
from shoal.measure import mean_interval, reading_of
from shoal.plan import Remove
from shoal.preserve import evaluating
from shoal.record import Interval
from shoal.scanning.batched_candidates import run_batched, stacking_agrees
from shoal.scanning.candidates import Candidate, removal_candidates
from shoal.scanning.damage import DamageFunction, OutputDamage


class SweepObserver:
    """What a sweep calls as outputs come in; the methods do nothing unless overridden."""

    def is_active(self, candidate: Candidate) -> bool:
        """Whether to run the candidate on the next mini-batch."""
        return True

    def on_baseline(self, index: int, batch: Batch, output: Any) -> None:
        """The output of the unchanged network on mini-batch number `index`."""

    def on_candidate(self, candidate: Candidate, batch: Batch, output: Any) -> None:
        """The output under a candidate, on the mini-batch of the last `on_baseline`."""

    def on_batch_end(self, index: int) -> None:
        """Every active candidate was run on mini-batch number `index`."""


class Recordings:
    """What sweeps over the same mini-batches record of each: the original's output, and a prefix to run from.

    Args:
        graph: the analysed original network.
        memory: bytes that are kept from one sweep to the next; what does not fit is run again.
    """

    def __init__(self, graph: BlockGraph, memory: float = 0) -> None:
        self.graph, self.memory = graph, memory
        self.base: dict[str, Forward] = {}
        self._removed: tuple[str, ...] = ()
        self._plain = self._prefix = PrefixCache(graph)
        self._originals: dict[int, Any] = {}
        self._prefixes: dict[int, PrefixCache] = {}

    def remove(self, removed: Sequence[str]) -> None:
        """From now on these are removed in every run but the original's; prefixes without others are dropped."""
        if tuple(removed) == self._removed:
            return
        modules = module_replacements(self.graph, [Remove.named(name) for name in removed])
        self.base = {path: module.forward for path, module in modules.items()}
        self._removed, self._prefix = tuple(removed), PrefixCache(self.graph, self.base)
        self._prefixes.clear()

    def of(self, index: int, batch: Batch) -> tuple[Any, PrefixCache]:
        """The original's output on mini-batch number `index`, and the prefix of the network without what is removed."""
        prefix, output = self._prefixes.get(index), self._originals.get(index)
        if output is None and not self._removed:
            prefix = copy(self._prefix)
            output = prefix.record(batch)
        elif output is None:
            # From where the network may be run again is found out with nothing removed.
            output = call(self.graph.model, batch) if self.graph.restarts else self._plain.record(batch)
        if prefix is None:
            prefix = copy(self._prefix)
            prefix.record(batch)
        if index not in self._originals and self._size + _size(output) <= self.memory:
            self._originals[index] = output
        if index not in self._prefixes and self._size + _size(prefix.outputs) <= self.memory:
            self._prefixes[index] = prefix
        return output, prefix

    @property
    def _size(self) -> int:
        return sum(map(_size, (*self._originals.values(), *(prefix.outputs for prefix in self._prefixes.values()))))


def _size(item: Any) -> int:
    """Bytes of the tensors in containers; what is in something else is not known, and counts as endless."""
    if isinstance(item, torch.Tensor):
        return min(item.nbytes, item.untyped_storage().nbytes())  # an expanded one takes less than its shape says
    if isinstance(item, Mapping):
        return sum(map(_size, item.values()))
    if isinstance(item, tuple | list):
        return sum(map(_size, item))
    return 0 if item is None or isinstance(item, bool | int | float | str) else sys.maxsize


def sweep(
    graph: BlockGraph,
    loader: Iterable[Any],
    candidates: Sequence[Candidate],
    observer: SweepObserver,
    *,
    skip: int = 0,
    stack: int = 1,
    recordings: Recordings | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Run every candidate on every mini-batch and report the outputs to `observer`; the network is left as it was.

    Args:
        graph: the analysed original network.
        loader: mini-batches, read once.
        candidates: the ablations.
        observer: receives the outputs.
        skip: mini-batches at the beginning that are read but not run (a resumed scan).
        stack: how many removed-block candidates share a forward on the batch axis, where the network supports it; 1
            runs each alone, which is bitwise what a whole forward gives.
        recordings: of earlier sweeps over the same mini-batches, in the same order; they say what is removed in every
            run except the baseline, by default nothing.
        on_progress: called with (candidates done, candidates) in each mini-batch.

    Raises:
        DataError: the loader is empty.
        NonFiniteError, ModelRaisedError: as the network behaves.
    """
    recordings = recordings or Recordings(graph)
    count = 0
    with evaluating(graph.model):
        for index, batch in enumerate(batches(loader, device_of(graph.model))):
            count += 1
            if index < skip:
                continue
            output, prefix = recordings.of(index, batch)
            observer.on_baseline(index, batch, output)
            active = [candidate for candidate in candidates if observer.is_active(candidate)]
            if stack > 1 and index == skip:
                paths = [candidate.path for candidate in active if candidate.ablation == "block"]
                stack = stack if stacking_agrees(graph, recordings.base, batch, paths, stack) else 1
            for done, (candidate, output) in enumerate(outputs_of(graph, prefix, active, stack), 1):
                observer.on_candidate(candidate, batch, output)
                if on_progress is not None:
                    on_progress(done, len(active))
            observer.on_batch_end(index)
    if not count:
        raise DataError("there is no data to measure on", "Give a loader with at least one mini-batch.")


def outputs_of(
    graph: BlockGraph, prefix: PrefixCache, candidates: Sequence[Candidate], stack: int = 1
) -> Iterator[tuple[Candidate, Any]]:
    """The network's output under each candidate, on the mini-batch that `prefix` recorded; up to `stack` share one."""
    remaining = list(candidates)
    if stack > 1:
        blocks = {candidate.path: candidate for candidate in candidates if candidate.ablation == "block"}
        for path, output in run_batched(graph, prefix, list(blocks), stack):
            yield blocks[path], output
            remaining.remove(blocks[path])
    for candidate in remaining:
        yield candidate, candidate.run(prefix)


@dataclass(frozen=True)
class RemovalDamage:
    """The effect of removing one block or unit on the outputs: mean damage per sample, 95 % interval."""

    path: str
    damage: float
    interval: Interval
    n: int


def removal_sweep(
    graph: BlockGraph,
    loader: Iterable[Any],
    candidates: Sequence[str],
    *,
    removed: Sequence[str] = (),
    damage: DamageFunction | None = None,
    recordings: Recordings | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[RemovalDamage]:
    """The damage of removing each candidate, in addition to what is in `removed`.

    Damage is measured against the whole original network, on the same samples for every candidate.

    Args:
        graph: the analysed original network; it is left as it was.
        loader: mini-batches, read once.
        candidates: block paths, or names of `plan.Remove`: single units, blocks with their norms.
        removed: what is removed in every run, likewise.
        damage: what to measure; by default the divergence of the outputs, read as the first mini-batch and its labels
            suggest. `loader` is then read more than once.
        recordings: of earlier sweeps over the same mini-batches, in the same order.
        on_progress: called with (runs done, runs in this mini-batch).

    Returns:
        One for each candidate, in order.

    Raises:
        DataError: the loader is empty.
        NonFiniteError, ModelRaisedError: as the network behaves.
    """
    if damage is None:
        loader = list(loader) if isinstance(loader, Iterator) else loader
        damage = OutputDamage(reading_of(graph.model, loader))
    collector = _DamageCollector(damage)
    ablations = removal_candidates(graph, candidates, removed)
    recordings = recordings or Recordings(graph)
    recordings.remove(removed)
    sweep(graph, loader, ablations, collector, recordings=recordings, on_progress=on_progress)
    return [_mean_damage(path, collector.by_path[path]) for path in candidates]


class _DamageCollector(SweepObserver):
    def __init__(self, damage: DamageFunction) -> None:
        self.damage = damage
        self.by_path: dict[str, list[torch.Tensor]] = {}
        self.original: Any = None

    def on_baseline(self, index: int, batch: Batch, output: Any) -> None:
        self.original = output

    def on_candidate(self, candidate: Candidate, batch: Batch, output: Any) -> None:
        self.by_path.setdefault(candidate.path, []).append(self.damage(self.original, output, batch).cpu())


def _mean_damage(path: str, parts: list[torch.Tensor]) -> RemovalDamage:
    values = np.asarray(torch.cat(parts).double())
    return RemovalDamage(path, float(values.mean()), mean_interval(values), len(values))
