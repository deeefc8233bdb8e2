"""Time kinds of modules in their places, by this process, or by workers that have a node each to themselves.

What is measured are shares of the whole network's time on the same machine, in the same rounds, so that workers on
equal machines come to the same. A worker on any other machine times nothing, and this process does it instead: one
table never mixes the latencies of two kinds of machines.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from shoal.batches import Batch, device_of
from shoal.measure import machine
from shoal.pipeline.profiling import PlacedModule, latency_shares, pack
from shoal.replace import SegmentChain
from shoal.workers import LocalWorkers, Workers, WorkerTask, timing_workers, working

# Tasks for each of several workers: each times the original again, in the same rounds as its kinds.
_PER_WORKER = 2

Keys = tuple[str, ...]


@dataclass(frozen=True)
class TimedKinds:
    """Shares in the time of the whole network: of the segments by path, of kinds by key."""

    segments: dict[str, float]
    kinds: dict[str, float]


@dataclass(eq=False)
class KindTimer:
    """Times some of the kinds. It is what workers hold: pickled, it brings the network and all kinds along.

    Args:
        model: the original.
        segments: of the network.
        kinds: one module of each, by key.
        batch: the mini-batch that is timed.
        channels_last: time images with the channels last in memory.
    """

    model: nn.Module
    segments: SegmentChain
    kinds: Mapping[str, PlacedModule]
    batch: Batch
    channels_last: bool = False

    def __post_init__(self) -> None:
        self.asked_on = self.machine

    @property
    def machine(self) -> tuple[str, str, int]:
        """What times depend on: the processor, the device and the threads."""
        here = machine(device_of(self.model))
        return here.processor, here.device, here.threads

    def __call__(self, keys: Keys, shared: Any) -> TimedKinds | None:
        """The shares of the segments and of these kinds; None on a machine that is unlike that of who asks."""
        if self.machine != self.asked_on:
            return None
        kinds = {key: self.kinds[key] for key in keys}
        shares = latency_shares(self.model, self.segments, kinds, self.batch, channels_last=self.channels_last)
        return TimedKinds(*shares)

    def timed(self, workers: Workers) -> Iterator[TimedKinds]:
        """All kinds, in portions, as they come.

        Args:
            workers: who measures candidates; those of them that may time do, and this process does what is left.
        """
        timing = timing_workers(workers)
        portions = self._portions(_PER_WORKER * timing.count if timing.count > 1 else 1)
        for each in (timing, LocalWorkers()):
            unlike: list[Keys] = []
            with working(each, self) as results:
                for keys, timed in results(map(WorkerTask, portions)):
                    if timed is None:
                        unlike.append(keys)
                    else:
                        yield timed
            portions = unlike

    def _portions(self, count: int) -> Sequence[Keys]:
        """The keys in so many portions at most, of whole layouts; a single one without any where only segments are."""
        layouts = pack(self.kinds)
        chunks = [layouts[start::count] for start in range(min(count, len(layouts)))]
        return [tuple(key for layout in chunk for key in layout) for chunk in chunks] or [()]
