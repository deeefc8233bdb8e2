"""How long networks take as a share of another, on a machine that others use too.

A machine that is busy for a while slows everything down alike, so each timing is paired with one of the original that
was taken within milliseconds, in alternating order, and only the ratio within a pair counts. Both blocks of a pair last
about equally long, so that an interruption is as likely in either. What still hits one block alone makes an outlier of
its pair: pairs are trimmed at both ends. Pairs are taken until the interval of the ratio is narrow enough.

What other programs take from a thread on a CPU is not its latency. The system knows it: a thread that did not wait of
its own accord, for a lock, a disk or another thread, was ready all the time, so the time it was on a core is the time
it would have taken alone.
"""

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import scipy
from torch import nn
from torch.utils.benchmark.utils.timer import timer as clock  # it waits for the device

from shoal.arguments import positive_number
from shoal.batches import Batch, device_of
from shoal.errors import UsageError
from shoal.measure.instructions import instructions_of
from shoal.measure.isolation import isolated_cores
from shoal.measure.latency import forwards_of, latency
from shoal.record import Latency, LatencyRatio

resource: Any  # Windows has none
try:
    import resource
except ImportError:
    resource = None

# A block of forwards lasts at least so many seconds: far above the clock's resolution, far below a noisy spell.
_BLOCK_SECONDS = 0.005
# Pairs before the interval is believed at all, and before precision ends the timing; the same for any network.
_MIN_PAIRS, _MIN_STOPPING = 5, 24
# Nor does it end sooner: a machine that changes shows that only after a while.
_MIN_SECONDS = 1.0
# The interval is looked at whenever there are this many times the pairs of the last look: each look is a chance to
# stop at an interval that is narrow by luck.
_GROWTH = 1.2
_TRIM = 0.2  # of the pairs at each end
_CONFIDENCE = 0.95
_SECTIONS = 8  # of the pairs in their order: neighbours among them may be disturbed alike
_RATIO_SECONDS = 10
# Time on a core counts, where at most this share of the pairs waited; the others are left out.
_MAX_WAITING = 0.1


def voluntary_waits() -> float:
    """How often the calling thread gave up its core of its own accord; nan, unlike itself, where nobody counts that."""
    usage_of_thread = getattr(resource, "RUSAGE_THREAD", None)  # Linux has it
    return math.nan if usage_of_thread is None else resource.getrusage(usage_of_thread).ru_nvcsw


@dataclass(frozen=True)
class Timing:
    """Of a block: seconds of a forward by the clock and on a core, and whether the thread may have waited."""

    wall: float
    running: float
    waited: bool


@dataclass
class _Pairs:
    """What was timed of one network: the blocks of the original and its own, pair by pair."""

    original: list[Timing] = field(default_factory=list)
    network: list[Timing] = field(default_factory=list)
    next_look: int = _MIN_STOPPING

    def is_precise(self, precision: float) -> bool:
        """Whether the interval is narrow enough; looked at now and then only."""
        if len(self.network) < self.next_look:
            return False
        self.next_look = math.ceil(_GROWTH * len(self.network))
        return self.ratio(precision).is_precise

    def ratio(self, precision: float) -> LatencyRatio:
        """By the clock that is right for these pairs."""
        both = list(zip(self.original, self.network, strict=True))
        ready = [pair for pair in both if all(timing.running > 0 and not timing.waited for timing in pair)]
        if len(ready) >= max(_MIN_PAIRS, (1 - _MAX_WAITING) * len(both)):
            return ratio_of_pairs([a.running for a, _ in ready], [b.running for _, b in ready], precision, "running")
        return ratio_of_pairs([a.wall for a, _ in both], [b.wall for _, b in both], precision)


def latency_ratios(
    models: Mapping[str, nn.Module],
    batch: Batch,
    *,
    reference: str,
    precision: float = 0.01,
    max_seconds: float = 15.0,
    channels_last: bool = False,
    isolate: bool = False,
    instructions: bool = False,
) -> dict[str, LatencyRatio]:
    """The latency of each network as a share of that of one of them, the reference.

    Each timing is paired with one of the reference within milliseconds, in alternating order (A B, B A); a pair whose
    ratio is out of line counts for nothing. Networks are timed in turns until the 95 % interval of each is narrow
    enough. They come back as they were.

    Args:
        models: the networks by name.
        batch: what they are called with.
        reference: the name of the original among them.
        precision: the width of the 95 % interval at which timing stops, as a share of the ratio.
        max_seconds: for each network, at most; a network that is done sooner leaves its time to the others. A slow
            network takes longer: at least five pairs.
        channels_last: time copies of the networks, and 4-d inputs, with the channels last in memory.
        isolate: meanwhile bind the threads of this process to as many cores as torch uses, the least busy ones (Linux).
        instructions: also count instructions, on a CPU where `perf` may.

    Returns:
        The ratio of each network but the reference, with the interval that was reached: see
        `LatencyRatio.is_precise`.

    Raises:
        UsageError: no such reference, or a bound that is not above 0.
        DataError: the batch holds no sample.
        ModelRaisedError: a network raised.
        SurgeryError: `channels_last`, and a network cannot be copied.
    """
    if reference not in models:
        names = ", ".join(map(repr, models)) or "none"
        raise UsageError(f"the reference {reference!r} is none of the networks to time: {names}", "Name one of them.")
    positive_number("precision", precision, "Like 0.01 for an interval of 1 % of the ratio.")
    positive_number("max_seconds", max_seconds, "Like 15.")
    on_cpu = all(device_of(model).type == "cpu" for model in models.values())
    isolation = isolated_cores() if isolate else nullcontext("")
    with forwards_of(models, batch, channels_last=channels_last) as forwards, _without_collection():
        with isolation as isolated:
            pairs = _take_pairs(_Timer(forwards, on_cpu), reference, precision, max_seconds)
        counts = {name: instructions_of(forwards[name]) for name in forwards} if instructions and on_cpu else {}
    conditions = [isolated] if isolated else []
    return {
        name: taken.ratio(precision).model_copy(update=_second_opinion(counts, name, reference, conditions))
        for name, taken in pairs.items()
    }


def _second_opinion(
    counts: Mapping[str, float | str], name: str, reference: str, conditions: list[str]
) -> dict[str, Any]:
    """The ratio of instructions, or why there is none, as fields of the ratio."""
    own, original = counts.get(name), counts.get(reference)
    if isinstance(own, float) and isinstance(original, float):
        return {"instructions": own / original, "conditions": conditions}
    reasons = [f"instructions not counted: {count}" for count in (own, original) if isinstance(count, str)]
    return {"conditions": [*conditions, *reasons[:1]]}


def latency_beside(
    models: Mapping[str, nn.Module],
    batch: Batch,
    *,
    reference: str,
    channels_last: bool = False,
    seconds: float = 1.0,
    isolate: bool = False,
) -> dict[str, Latency]:
    """The latency of each network, and of all but the reference its ratio to it: what a record holds.

    Args:
        models: the networks by name.
        batch: what they are called with.
        reference: the name of the original among them.
        channels_last: time copies of the networks, and 4-d inputs, with the channels last in memory.
        seconds: timed seconds for each network, about; ratios take up to ten times as long.
        isolate: bind the threads to cores while ratios are taken, see `latency_ratios`.
    """
    times = latency(models, batch, channels_last=channels_last, min_seconds=seconds)
    ratios = latency_ratios(
        models,
        batch,
        reference=reference,
        max_seconds=_RATIO_SECONDS * seconds,
        channels_last=channels_last,
        isolate=isolate,
        instructions=True,
    )
    for name, ratio in ratios.items():
        times[name] = times[name].model_copy(update={"ratio": ratio.model_copy(update={"batch": batch.size})})
    return times


def ratio_of_pairs(
    original: Sequence[float],
    network: Sequence[float],
    precision: float | None = None,
    clock_name: Literal["wall", "running"] = "wall",
) -> LatencyRatio:
    """The ratio of the times at the same places, with its interval and drift.

    The mean of the logarithms without the outer fifth at each end (Tukey and McLaughlin's interval). Neighbouring
    pairs may be disturbed alike: where the means of successive sections differ by more than independent pairs would,
    the interval is made of these.

    Args:
        original: seconds of the original, of two pairs at least, in the order in which they were timed.
        network: seconds of the network.
        precision: what was asked for.
        clock_name: the clock that the seconds are of.
    """
    logs = np.log(np.asarray(network) / np.asarray(original))
    centre, half = _centre(logs), max(_half_width(logs), _half_width_of_sections(logs))
    drift, drift_half = _drift(logs)
    original_drift, _ = _drift(np.log(np.asarray(original)))
    return LatencyRatio(
        ratio=math.exp(centre),
        low=math.exp(centre - half),
        high=math.exp(centre + half),
        rounds=len(logs),
        drift=math.expm1(drift),
        drift_interval=None if drift_half is None else (math.expm1(drift - drift_half), math.expm1(drift + drift_half)),
        original_drift=math.expm1(original_drift),
        original_ms=1e3 * float(np.median(original)),
        precision=precision,
        clock=clock_name,
    )


@dataclass(frozen=True)
class _Timer:
    """Times blocks of forwards by name."""

    forwards: Mapping[str, Callable[[], Any]]
    on_cpu: bool

    def block(self, name: str, count: int) -> Timing:
        """The mean of so many forwards; where they are short, behind another that fetches their weights and code."""
        forward = self.forwards[name]
        if count > 1:
            forward()
        waits, running, wall = voluntary_waits(), time.thread_time(), clock()
        for _ in range(count):
            forward()
        wall, running, waited = clock() - wall, time.thread_time() - running, voluntary_waits() != waits
        return Timing(wall / count, running / count, waited or not self.on_cpu)


def _take_pairs(timer: _Timer, reference: str, precision: float, max_seconds: float) -> dict[str, _Pairs]:
    counts = _block_counts(timer, reference)
    pairs = {name: _Pairs() for name in timer.forwards if name != reference}
    unfinished = list(pairs)
    started = clock()
    end, earliest = started + max_seconds * len(pairs), started + min(_MIN_SECONDS, max_seconds) * len(pairs)
    rounds = 0
    while unfinished and (rounds < _MIN_PAIRS or clock() < end):
        for name in unfinished:
            order = (reference, name) if rounds % 2 == 0 else (name, reference)
            blocks = {key: timer.block(key, counts[name][key]) for key in order}
            pairs[name].original.append(blocks[reference])
            pairs[name].network.append(blocks[name])
        rounds += 1
        if clock() >= earliest:
            unfinished = [name for name in unfinished if not pairs[name].is_precise(precision)]
    return pairs


def _block_counts(timer: _Timer, reference: str) -> dict[str, dict[str, int]]:
    """How many forwards make a block of each pair, by the name of the network: both last about equally long."""
    single = {name: max(min(timer.block(name, 1).wall for _ in range(3)), 1e-9) for name in timer.forwards}
    counts = {}
    for name in single:
        seconds = max(single[name], single[reference], _BLOCK_SECONDS)
        counts[name] = {key: max(1, round(seconds / single[key])) for key in (name, reference)}
    return counts


@contextmanager
def _without_collection() -> Iterator[None]:
    """Garbage is not collected in the middle of a block."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _centre(logs: np.ndarray) -> float:
    return float(scipy.stats.trim_mean(logs, _TRIM))


def _half_width(logs: np.ndarray) -> float:
    """Of the interval of the trimmed mean of independent values, from their winsorised spread."""
    count = len(logs)
    cut = int(_TRIM * count)
    ordered = np.sort(logs)
    spread = float(np.std(np.clip(logs, ordered[cut], ordered[count - cut - 1]), ddof=1))
    error = spread / ((1 - 2 * cut / count) * math.sqrt(count))
    return error * _quantile(count - 2 * cut - 1)


def _half_width_of_sections(logs: np.ndarray) -> float:
    """Of the interval by the means of successive sections; 0 where there are too few values for sections."""
    if len(logs) < 3 * _SECTIONS:
        return 0.0
    means = [_centre(section) for section in np.array_split(logs, _SECTIONS)]
    return float(np.std(means, ddof=1)) / math.sqrt(_SECTIONS) * _quantile(_SECTIONS - 1)


def _drift(logs: np.ndarray) -> tuple[float, float | None]:
    """By how much the last third lies above the first, and the half width of its interval if there are pairs enough."""
    third = max(1, len(logs) // 3)
    first, last = logs[:third], logs[-third:]
    half = math.hypot(_half_width(first), _half_width(last)) if third > 1 else None
    return _centre(last) - _centre(first), half


def _quantile(freedom: int) -> float:
    return float(scipy.stats.t.ppf(0.5 + _CONFIDENCE / 2, max(1, freedom)))
