"""Latencies of two networks side by side, and whether their difference can be told from noise."""

import math
from dataclasses import dataclass

from shoal.record import Latency, Record
from shoal.report.numbers import MISSING, ratio


@dataclass(frozen=True)
class Pair:
    """The same timing of both networks; one side may be missing."""

    original: Latency | None
    compressed: Latency | None

    @property
    def batch(self) -> int:
        """The batch size both were timed at."""
        return self.either.batch

    @property
    def either(self) -> Latency:
        """Whichever side is there; their conditions are equal."""
        one = self.original or self.compressed
        if one is None:
            raise ValueError("A pair of latencies needs at least one side.")
        return one

    @property
    def speedup(self) -> float | None:
        """Original over compressed median; None where a side is missing or not a positive number."""
        if self.original is None or self.compressed is None:
            return None
        before, after = self.original.median_ms, self.compressed.median_ms
        if not (math.isfinite(before) and math.isfinite(after)) or before <= 0 or after <= 0:
            return None
        return before / after

    @property
    def within_noise(self) -> bool:
        """Whether the quartiles overlap, so that neither network can be called faster."""
        a, b = self.original, self.compressed
        return a is not None and b is not None and a.q1_ms <= b.q3_ms and b.q1_ms <= a.q3_ms


def pairs(record: Record) -> list[Pair]:
    """The timings of both networks, matched by batch size and conditions, smallest batch first."""
    sides = [{_conditions(one): one for one in n.latency} for n in (record.original, record.compressed)]
    keys = sorted({*sides[0], *sides[1]})
    return [Pair(sides[0].get(key), sides[1].get(key)) for key in keys]


def _conditions(one: Latency) -> tuple[int, str, str, int, bool]:
    return (one.batch, one.device, one.dtype, one.threads, one.channels_last)


def words(pair: Pair) -> str:
    """The speed-up of a pair: `1.91 times faster`, `1.20 times slower`, `no difference beyond noise`."""
    speedup = pair.speedup
    if speedup is None:
        return MISSING
    if pair.within_noise:
        return "no difference beyond noise"
    return f"{ratio(speedup)} times faster" if speedup >= 1 else f"{ratio(1 / speedup)} times slower"


def conditions(pair: Pair) -> str:
    """Under which conditions a pair was timed, in one phrase."""
    one = pair.either
    threads = f"{one.threads} thread{'' if one.threads == 1 else 's'}"
    layout = ", channels last" if one.channels_last else ""
    return f"{one.device}, {one.dtype}, {threads}{layout}, {one.runs} runs"
