"""The sweep: what the network's outputs become under each candidate ablation, exactly and cheaply.

No approximation but the sample: each mini-batch runs once whole, then once for every candidate from that candidate on
(see `blocks.prefix`), which halves the work. Candidates may also ride together on the batch axis (see `stacked`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from shoal.batches import Batch, batches, device_of
from shoal.blocks import BlockGraph
from shoal.blocks.module_replacements import module_replacements
from shoal.blocks.prefix_cache import PrefixCache
from shoal.errors import DataError
from shoal.measure import mean_interval, reading_of
from shoal.plan import Remove
from shoal.preserve import evaluating
from shoal.record import Interval
from shoal.scanning.batched_candidates import run_batched, stacking_agrees
from shoal.scanning.candidates import Candidate, removal_candidates
from shoal.scanning.damage import Damage, OutputDamage

Ticker = Callable[[int, int], None]


class SweepObserver:
    """What a sweep calls as outputs come in; the methods do nothing until they are overridden."""

    def wants(self, candidate: Candidate) -> bool:
        """Whether the candidate is still of interest; asked before each mini-batch."""
        return True

    def whole(self, index: int, batch: Batch, output: Any) -> None:
        """Mini-batch number `index`: what the whole original network returned."""

    def see(self, candidate: Candidate, batch: Batch, output: Any) -> None:
        """What was returned under a candidate, on the mini-batch of the last `whole`."""

    def done(self, index: int) -> None:
        """Every candidate has been seen on mini-batch number `index`."""


def sweep(
    anatomy: BlockGraph,
    loader: Iterable[Any],
    candidates: Sequence[Candidate],
    visitor: SweepObserver,
    *,
    removed: Sequence[str] = (),
    skip: int = 0,
    stack: int = 1,
    tick: Ticker | None = None,
) -> None:
    """Run every candidate on every mini-batch and hand the outputs to `visitor`; the network is left as it was.

    Args:
        anatomy: the original network, dissected.
        loader: mini-batches, read once.
        candidates: what to try.
        visitor: takes the outputs in.
        removed: what is gone in every run but the whole one: block paths, or names of `plan.Remove`.
        skip: mini-batches at the beginning that are read but not run (a resumed scan).
        stack: how many removed-block candidates share a forward on the batch axis, where the network bears it; 1 runs
            each alone, which is bitwise what a whole forward gives.
        tick: called with (candidates done, candidates) in each mini-batch.

    Raises:
        DataError: the loader is empty.
        NonFiniteError, ModelRaisedError: as the network behaves.
    """
    gone = module_replacements(anatomy, [Remove.named(one) for one in removed])
    base = {path: module.forward for path, module in gone.items()}
    count = 0
    with evaluating(anatomy.model):
        whole, current = PrefixCache(anatomy), PrefixCache(anatomy, base)
        for index, batch in enumerate(batches(loader, device_of(anatomy.model))):
            count += 1
            if index < skip:
                continue
            output = whole.record(batch)
            visitor.whole(index, batch, output)
            if removed:
                current.record(batch)
            prefix = current if removed else whole
            wanted = [one for one in candidates if visitor.wants(one)]
            if stack > 1 and index == skip:
                paths = [one.path for one in wanted if one.ablation == "block"]
                stack = stack if stacking_agrees(anatomy, base, batch, paths, stack) else 1
            for done, (candidate, output) in enumerate(_outputs(anatomy, prefix, wanted, stack), 1):
                visitor.see(candidate, batch, output)
                if tick is not None:
                    tick(done, len(wanted))
            visitor.done(index)
    if not count:
        raise DataError("there is no data to measure on", "Give a loader with at least one mini-batch.")


def _outputs(
    anatomy: BlockGraph, prefix: PrefixCache, wanted: Sequence[Candidate], stack: int
) -> Iterable[tuple[Candidate, Any]]:
    alone: Sequence[Candidate] = wanted
    if stack > 1:
        together = {one.path: one for one in wanted if one.ablation == "block"}
        stacked = run_batched(anatomy, prefix, list(together), stack)
        for path, output in stacked:
            yield together.pop(path), output
        alone = [one for one in wanted if one.ablation != "block" or one.path in together]
    for candidate in alone:
        yield candidate, candidate.run(prefix)


@dataclass(frozen=True)
class RemovalDamage:
    """What taking one block or unit out does to the outputs: mean damage a sample, 95 % interval."""

    path: str
    damage: float
    interval: Interval
    n: int


def removal_sweep(
    anatomy: BlockGraph,
    loader: Iterable[Any],
    candidates: Sequence[str],
    *,
    removed: Sequence[str] = (),
    damage: Damage | None = None,
    tick: Ticker | None = None,
) -> list[RemovalDamage]:
    """The worth of every candidate, given that what is in `removed` is gone already.

    Damage is measured against the whole original network, on the same samples for every candidate.

    Args:
        anatomy: the original network, dissected; it is left as it was.
        loader: mini-batches, read once.
        candidates: block paths, or names of `plan.Remove`: single units, blocks with their norms.
        removed: what is gone in every run, likewise.
        damage: what to measure; by default how far the outputs are, read as the first mini-batch and its labels tell.
            `loader` is then read more than once.
        tick: called with (runs done, runs in this mini-batch).

    Returns:
        One `Worth` a candidate, in the order given.

    Raises:
        DataError: the loader is empty.
        NonFiniteError, ModelRaisedError: as the network behaves.
    """
    if damage is None:
        loader = list(loader) if isinstance(loader, Iterator) else loader
        damage = OutputDamage(reading_of(anatomy.model, loader))
    tried = removal_candidates(anatomy, candidates, removed)
    collector = _Damages(damage)
    sweep(anatomy, loader, tried, collector, removed=removed, tick=tick)
    return [_worth(path, collector.found[path]) for path in candidates]


class _Damages(SweepObserver):
    def __init__(self, damage: Damage) -> None:
        self.damage = damage
        self.found: dict[str, list[torch.Tensor]] = {}
        self.original: Any = None

    def whole(self, index: int, batch: Batch, output: Any) -> None:
        self.original = output

    def see(self, candidate: Candidate, batch: Batch, output: Any) -> None:
        self.found.setdefault(candidate.path, []).append(self.damage(self.original, output, batch).cpu())


def _worth(path: str, parts: list[torch.Tensor]) -> RemovalDamage:
    values = np.asarray(torch.cat(parts).double())
    return RemovalDamage(path, float(values.mean()), mean_interval(values), len(values))
