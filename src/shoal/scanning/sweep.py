"""Run every removal on every mini-batch: exact, at about half the cost of whole forwards.

Each mini-batch runs through the unchanged network once, and then for every candidate from that candidate on (see
`blocks.prefix_cache`). Candidates may also share a forward on the batch axis (see `batched_candidates`).
"""

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoal.batches import Batch, batches, call, device_of
from shoal.blocks import BlockGraph
from shoal.blocks.module_replacements import module_replacements
from shoal.blocks.prefix_cache import Forward, PrefixCache
from shoal.errors import DataError
from shoal.measure import mean_interval, reading_of
from shoal.plan import Remove
from shoal.preserve import evaluating
from shoal.record import Interval
from shoal.scanning.batched_candidates import run_batched
from shoal.scanning.candidates import Candidate, removal_candidates
from shoal.scanning.damage import DamageFunction, OutputDamage, damage_from
from shoal.workers import LocalWorkers, Results, Workers, WorkerTask, working

# Removals in a task at most: progress moves with each task.
_AT_A_TIME = 4
# Tasks of a mini-batch for each of several workers: few, since each worker records the mini-batch for itself.
_PER_WORKER = 1

Progress = Callable[[int, int], None]


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
        self._former: dict[int, PrefixCache] = {}
        self._changed: list[str] = []
        self._latest: tuple[int, Any, PrefixCache] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, it is as it was at first."""
        return Recordings, (self.graph, self.memory)

    def remove(self, removed: Sequence[str]) -> None:
        """From now on these are removed in every run but the original's.

        Where more is removed than before, prefixes are recorded anew from the first further removal on; else whole.
        """
        if tuple(removed) == self._removed:
            return
        before, further = set(self._removed), set(removed) - set(self._removed)
        modules = module_replacements(self.graph, [Remove.named(name) for name in removed])
        self.base = {path: module.forward for path, module in modules.items()}
        self._former = self._prefixes if before <= set(removed) and not self._former else {}
        self._changed = [Remove.named(name).path for name in further]
        self._removed, self._prefix = tuple(removed), PrefixCache(self.graph, self.base)
        self._prefixes = {}
        self._latest = None

    def of(self, index: int, batch: Batch) -> tuple[Any, PrefixCache]:
        """The original's output on mini-batch number `index`, and the prefix of the network without what is removed."""
        if self._latest is None or self._latest[0] != index:
            self._latest = None  # before the next is made: both might not fit
            self._latest = index, *self._recorded(index, batch)
        return self._latest[1:]

    def _recorded(self, index: int, batch: Batch) -> tuple[Any, PrefixCache]:
        prefix, output = self._prefixes.get(index), self._originals.get(index)
        if output is None and not self._removed:
            prefix = copy(self._prefix)
            output = prefix.record(batch)
        elif output is None:
            # From where the network may be run again is found out with nothing removed.
            output = call(self.graph.model, batch) if self.graph.restarts else self._plain.record(batch)
        if prefix is None:
            prefix, former = copy(self._prefix), self._former.pop(index, None)
            if former is None:
                prefix.record(batch)
            else:
                prefix.record_behind(former, self._changed)
        if index not in self._originals and self._size + _size(output) <= self.memory:
            self._originals[index] = output
        if index not in self._prefixes and self._size + _size(prefix.outputs) <= self.memory:
            self._prefixes[index] = prefix
        return output, prefix

    @property
    def _size(self) -> int:
        prefixes = (*self._prefixes.values(), *self._former.values())
        return sum(map(_size, (*self._originals.values(), *(prefix.outputs for prefix in prefixes))))


def _size(item: Any) -> int:
    """Bytes of the tensors in containers; what is in something else is not known, and counts as endless."""
    if isinstance(item, torch.Tensor):
        return min(item.nbytes, item.untyped_storage().nbytes())  # an expanded one takes less than its shape says
    if isinstance(item, Mapping):
        return sum(map(_size, item.values()))
    if isinstance(item, tuple | list):
        return sum(map(_size, item))
    return 0 if item is None or isinstance(item, bool | int | float | str) else sys.maxsize


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
    on_progress: Progress | None = None,
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
        on_progress: called with (runs done, runs so far known).

    Returns:
        One for each candidate, in order.

    Raises:
        DataError: the loader is empty.
        NonFiniteError, ModelRaisedError: as the network behaves.
    """
    if damage is None:
        loader = list(loader) if isinstance(loader, Iterator) else loader
        damage = OutputDamage(reading_of(graph.model, loader))
    with RemovalSweeps(graph, damage).open() as sweeps:
        return sweeps.measure(loader, candidates, removed, on_progress)


@dataclass(frozen=True)
class RemovalTask:
    """Removals of these names, each with those that are `removed` already, on mini-batch number `index`."""

    index: int
    names: tuple[str, ...]
    removed: tuple[str, ...] = ()


@dataclass(eq=False)
class RemovalScorer:
    """Runs tasks. It is what workers hold: pickled, it brings the network and its analysis along.

    Args:
        recordings: of the mini-batches that it meets.
        damage: how far outputs are from the original's, for each sample.
    """

    recordings: Recordings
    damage: DamageFunction

    def __call__(self, task: RemovalTask, batch: Batch) -> dict[str, Tensor]:
        """The damages of the samples of a mini-batch, by the name of the removal."""
        graph, recordings = self.recordings.graph, self.recordings
        with evaluating(graph.model):
            recordings.remove(task.removed)
            batch = batch.to(device_of(graph.model))
            original, prefix = recordings.of(task.index, batch)
            tried = outputs_of(graph, prefix, removal_candidates(graph, task.names, task.removed))
            damage = damage_from(self.damage, original, batch)
            return {candidate.path: damage(output).detach().cpu() for candidate, output in tried}


class RemovalSweeps:
    """Sweeps over the same mini-batches, one after the other, within the block of `open`.

    Args:
        graph: the analysed original network; it is left as it was.
        damage: what to measure.
        memory: bytes of recordings that are kept from one sweep to the next.
        workers: who runs them; by default this process.
    """

    def __init__(
        self, graph: BlockGraph, damage: DamageFunction, memory: float = 0, workers: Workers | None = None
    ) -> None:
        self.graph, self.workers = graph, workers or LocalWorkers()
        self.scorer = RemovalScorer(Recordings(graph, memory), damage)
        self._results: Results | None = None

    @contextmanager
    def open(self) -> Iterator["RemovalSweeps"]:
        """Have workers at hand; they are gone when the block ends."""
        with working(self.workers, self.scorer) as self._results:
            yield self
        self._results = None

    def measure(
        self,
        loader: Iterable[Any],
        candidates: Sequence[str],
        removed: Sequence[str] = (),
        on_progress: Progress | None = None,
    ) -> list[RemovalDamage]:
        """See `removal_sweep`; the same mini-batches, in the same order, each time."""
        if self._results is None:
            raise RuntimeError("open() before measuring")
        samples: dict[str, dict[int, Tensor]] = defaultdict(dict)
        tasks = _RemovalTasks(self, loader, candidates, tuple(removed))
        done = 0
        for task, damages in self._results(tasks):
            for name, values in damages.items():
                samples[name][task.index] = values
            done += len(damages)
            if on_progress is not None:
                on_progress(done, max(done, tasks.runs))
        if not tasks.batches:
            raise DataError("there is no data to measure on", "Give a loader with at least one mini-batch.")
        # In the order of the mini-batches, whoever was faster: sums of floats depend on it.
        return [_mean_damage(name, [samples[name][index] for index in range(tasks.batches)]) for name in candidates]


class _RemovalTasks:
    """The tasks of a sweep, as they are drawn; counts mini-batches and runs."""

    def __init__(
        self, sweeps: RemovalSweeps, loader: Iterable[Any], candidates: Sequence[str], removed: tuple[str, ...]
    ) -> None:
        self.graph, self.count, self.loader = sweeps.graph, sweeps.workers.count, loader
        self.candidates, self.removed = candidates, removed
        self.batches = self.runs = 0

    def __iter__(self) -> Iterator[WorkerTask]:
        for index, batch in enumerate(batches(self.loader, device_of(self.graph.model))):
            if not index and not self.graph.restarts:  # here, so that all workers run the network from the same places
                with evaluating(self.graph.model):
                    PrefixCache(self.graph).find_restarts(batch)
            self.batches += 1
            self.runs += len(self.candidates)
            for names in self._parts():
                yield WorkerTask(RemovalTask(index, tuple(names), self.removed), batch)

    def _parts(self) -> list[Sequence[str]]:
        """Candidates for a task each: neighbours, which start at neighbouring blocks."""
        size = _AT_A_TIME
        if self.count > 1:
            size = min(size, max(1, math.ceil(len(self.candidates) / (_PER_WORKER * self.count))))
        return [self.candidates[start : start + size] for start in range(0, len(self.candidates), size)]


def _mean_damage(path: str, parts: list[torch.Tensor]) -> RemovalDamage:
    values = np.asarray(torch.cat(parts).double())
    return RemovalDamage(path, float(values.mean()), mean_interval(values), len(values))
