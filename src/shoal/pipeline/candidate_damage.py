"""The damage of candidate changes on held-back samples: as they are, and after the cheapest refit.

Both run the network from the first changed module on, with everything before it from a cache. What is measured goes
into the measurement cache as it comes, under the names of mini-batch and change; workers may measure it in any order.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from shoal.batches import Batch
from shoal.blocks import BlockGraph
from shoal.blocks.prefix_cache import Forward
from shoal.errors import DataError, NonFiniteError
from shoal.measure import mean_interval
from shoal.offloaded import is_offloaded
from shoal.pipeline.cache import DamageKind, MeasurementCache
from shoal.pipeline.candidate_refit import CandidateRefit, PlacedChange
from shoal.preserve import evaluating
from shoal.record import Interval
from shoal.replace import SegmentChain
from shoal.scanning import DamageFunction, Recordings, damage_from
from shoal.workers import LocalWorkers, Results, Workers, WorkerTask, working

# Refitted layers of so many bytes are held at a time.
_HELD = 2e8
# Of what the original did on the mini-batches, which every task starts from.
_KEPT_BYTES = 2**30
# Changes in a task at most: so many are lost where its process is killed.
_AT_A_TIME = 16
# Tasks for each of several workers: with more of them, the last to finish keeps the others waiting less.
_PER_WORKER = 4

Combinations = Mapping[str, Sequence[str]]
"""Changes that are made together, in order, each by its name, under a name of their own."""


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


@dataclass(frozen=True)
class DamageTask:
    """Changes to be made together by their names, and where: on mini-batch `batch`, or after a refit on all (None)."""

    combinations: tuple[tuple[str, tuple[str, ...]], ...]
    batch: int | None = None


@dataclass(eq=False)
class DamageScorer:
    """Runs tasks. It is what workers hold: pickled, it brings the network, all changes and the mini-batches along.

    Args:
        graph: of the original.
        segments: of the original.
        judge: mini-batches of samples that nothing is fitted on.
        damage: how far outputs are from the original's, for each sample.
        changes: all there are, by name.
        refit: of this network; None for none.
    """

    graph: BlockGraph
    segments: SegmentChain
    judge: Sequence[Batch]
    damage: DamageFunction
    changes: Mapping[str, PlacedChange]
    refit: CandidateRefit | None = None
    recordings: Recordings = field(init=False)

    def __post_init__(self) -> None:
        self.recordings = Recordings(self.graph, 0 if is_offloaded(self.graph.model) else _KEPT_BYTES)

    def __call__(self, task: DamageTask, _: None = None) -> dict[int, dict[str, list[float]]]:
        """By mini-batch the damages of its samples, by name; without those that cannot be refitted."""
        if task.batch is None:
            return self._refitted(task)
        forwards = {name: self.changes[changes[0]].forwards for name, changes in task.combinations}
        return {task.batch: self._damages(task, task.batch, forwards)}

    def _refitted(self, task: DamageTask) -> dict[int, dict[str, list[float]]]:
        """Refit as many at a time as memory holds, and measure them on all mini-batches."""
        measured: dict[int, dict[str, list[float]]] = {index: {} for index in range(len(self.judge))}
        for forwards in self._portions(task):
            for index, damages in measured.items():
                damages |= self._damages(task, index, forwards)
        return measured

    def _portions(self, task: DamageTask) -> Iterator[dict[str, Mapping[nn.Module, Forward]]]:
        refit, held = self.refit, 0
        portion: dict[str, Mapping[nn.Module, Forward]] = {}
        for name, changes in task.combinations:
            try:
                result = refit.refitted([self.changes[change] for change in changes]) if refit else None
            except (DataError, NonFiniteError):
                continue
            if result is None:
                continue
            portion[name] = result.forwards
            held += result.bytes
            if held > _HELD:
                yield portion
                portion, held = {}, 0
        if portion:
            yield portion

    def _damages(
        self,
        task: DamageTask,
        index: int,
        forwards: Mapping[str, Mapping[nn.Module, Forward]],
        *,
        only_finite: bool = False,
    ) -> dict[str, list[float]]:
        """The damages on one mini-batch, without those of networks whose answers are not finite after a refit."""
        changes, damages = dict(task.combinations), {}
        with evaluating(self.graph.model):
            batch = self.judge[index]
            original, prefix = self.recordings.of(index, batch)
            damage = damage_from(self.damage, original, batch)
            for name, replaced in forwards.items():
                start = self.segments.paths[self.changes[changes[name][0]].start]
                try:
                    output = prefix.run_from(prefix.segment_of(start), replaced)
                    measured = damage(output)
                except NonFiniteError:
                    if task.batch is not None:
                        raise
                    continue
                damages[name] = measured.detach().cpu().tolist()
        return damages


@dataclass
class DamageMeter:
    """Measures damages of one network on the same samples, within the block of `open`.

    Args:
        scorer: measures.
        cache: keeps what is measured.
        progress: called with (stage, done, total).
        workers: who measures.
    """

    scorer: DamageScorer
    cache: MeasurementCache
    progress: Callable[[str, int, int], None]
    workers: Workers = field(default_factory=LocalWorkers)
    results: Results | None = None

    @contextmanager
    def open(self) -> Iterator["DamageMeter"]:
        """Have workers at hand; they are gone when the block ends, so that nothing is timed while they work."""
        with working(self.workers, self.scorer) as results:
            yield replace(self, results=results)

    def measure(self) -> dict[str, ChangeDamage]:
        """The damage of each change alone, by its name."""
        names, refit = list(self.scorer.changes), self.scorer.refit
        raw = self.alone(names)
        refitted = self.refitted({name: [name] for name in names}) if refit is not None and refit.applies else {}
        return {
            name: ChangeDamage(
                float(samples.mean()),
                mean_interval(samples),
                float(refitted[name].mean()) if name in refitted else None,
            )
            for name, samples in raw.items()
        }

    def alone(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The damage of each change alone, for every sample, by its name."""
        values = self.cache.damages()
        tasks = []
        for index in range(len(self.scorer.judge)):
            remaining = [name for name in names if index not in values.get(name, {})]
            tasks += [DamageTask(tuple((name, (name,)) for name in part), index) for part in self._parts(remaining)]
        self._run(f"damage of {len(names)} changes", tasks, "damage")
        return self._samples(names, self.cache.damages())

    def refitted(self, combinations: Combinations) -> dict[str, Tensor]:
        """The damage of changes together after a refit, for every sample; left out where a refit does not apply."""
        values, total = self.cache.damages("refitted"), len(self.scorer.judge)
        remaining = [name for name in combinations if len(values.get(name, {})) < total]
        tasks = [
            DamageTask(tuple((name, tuple(combinations[name])) for name in part)) for part in self._parts(remaining)
        ]
        self._run(f"damage of {len(remaining)} changes after a refit", tasks, "refitted")
        values = self.cache.damages("refitted")
        return self._samples([name for name in combinations if len(values.get(name, {})) == total], values)

    def _run(self, stage: str, tasks: Sequence[DamageTask], kind: DamageKind) -> None:
        """Have the tasks run, and keep each result as it comes."""
        if self.results is None:
            raise RuntimeError("open() before measuring")
        done, total = 0, sum(len(task.combinations) for task in tasks)
        for task, measured in self.results(map(WorkerTask, tasks)):
            for index, damages in measured.items():
                self.cache.add_damages(index, damages, kind)
            done += len(task.combinations)
            self.progress(stage, done, total)

    def _parts(self, names: Sequence[str]) -> list[Sequence[str]]:
        """Names for a task each."""
        count = self.workers.count or 1
        size = _AT_A_TIME if count == 1 else min(_AT_A_TIME, math.ceil(len(names) / (_PER_WORKER * count)))
        return [names[start : start + size] for start in range(0, len(names), size)] if names else []

    def _samples(self, names: Sequence[str], values: Mapping[str, Mapping[int, list[float]]]) -> dict[str, Tensor]:
        batches = range(len(self.scorer.judge))
        return {name: torch.tensor([value for index in batches for value in values[name][index]]) for name in names}
