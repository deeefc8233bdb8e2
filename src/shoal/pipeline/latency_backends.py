"""Where latencies come from: this machine, a table of another device, or a function of the user.

Every source is asked for the time of one module on inputs of one shape, batch included.
"""

import copy
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn

from shoal.batches import Batch
from shoal.errors import SpecError, UsageError, check_memory
from shoal.files.reading import read_json, refusing
from shoal.measure import interleaved_latency, latency, latency_ratios
from shoal.record import LatencyRatio
from shoal.sources import load_function

Shape = tuple[int, ...]

# Whole networks are timed this many times as long as single modules; more where a choice depends on it.
_WHOLE, _PRECISE = 12, 25
# Rounds of a time that nothing is chosen by.
_GLANCE = 3
# Seconds for each network at most, and the width of the interval of its ratio, where one of many is chosen; where it is
# told from others that come near; and where what was chosen is confirmed.
_EFFORTS = {"short": (2.0, 0.02), "long": (4.0, 0.01), "confirming": (20.0, 0.01)}
Effort = Literal["short", "long", "confirming"]
WHOLE = "whole"


class LatencyBackend(Protocol):
    """Says how long modules take.

    `source` names it in the record; `measures` is whether it can time whole networks, so that a plan can be checked
    against what was predicted.
    """

    source: str
    measures: bool

    @property
    def batch_size(self) -> int:
        """Of the mini-batch that is timed."""

    def time_modules(self, group: Mapping[str, nn.Module], shape: Shape) -> dict[str, float]:
        """Milliseconds of each module on inputs (batch, *shape), by key."""

    def time_models(self, group: Mapping[str, nn.Module], *, precise: bool = False) -> dict[str, float]:
        """Milliseconds of whole networks on the mini-batch that is timed; `precise` takes longer."""

    def time_ratios(self, group: Mapping[str, nn.Module], effort: Effort = "short") -> dict[str, LatencyRatio]:
        """Of whole networks to that called 'whole', with intervals; more effort makes these narrower."""


class MeasuredLatency:
    """This machine: modules interleaved, medians.

    Args:
        like: a parameter of the network: device and dtype.
        batch: the mini-batch to time whole networks with.
        channels_last: time images with the channels last in memory.
        seconds: timed seconds for each module; whole networks get several times that.
    """

    source = "measured"
    measures = True

    def __init__(self, like: torch.Tensor, batch: Batch, *, channels_last: bool = False, seconds: float = 0.15) -> None:
        self.like, self.batch, self.channels_last, self.seconds = like, batch, channels_last, seconds

    @property
    def batch_size(self) -> int:
        """Of the mini-batch."""
        return self.batch.size

    def time_modules(self, group: Mapping[str, nn.Module], shape: Shape) -> dict[str, float]:
        """Measured on random inputs."""
        generator = torch.Generator().manual_seed(0)
        inputs = torch.rand((self.batch.size, *shape), generator=generator).to(self.like.device, self.like.dtype)
        times = latency(group, Batch((inputs,)), channels_last=self.channels_last, min_seconds=self.seconds)
        return {key: measured.median_ms for key, measured in times.items()}

    def time_models(self, group: Mapping[str, nn.Module], *, precise: bool = False) -> dict[str, float]:
        """Measured interleaved; ratios to the first of them are taken round by round."""
        seconds = (_PRECISE if precise else _WHOLE) * self.seconds
        times = interleaved_latency(group, self.batch, channels_last=self.channels_last, min_seconds=seconds)
        first = next(iter(times.values()))
        base = statistics.median(first)
        return {
            key: base * statistics.median(ms / first_ms for ms, first_ms in zip(rounds, first, strict=True))
            for key, rounds in times.items()
        }

    def time_ratios(self, group: Mapping[str, nn.Module], effort: Effort = "short") -> dict[str, LatencyRatio]:
        """From pairs of timings within milliseconds of each other."""
        seconds, precision = _EFFORTS[effort]
        ratios = latency_ratios(
            group,
            self.batch,
            reference=WHOLE,
            precision=precision,
            max_seconds=seconds,
            channels_last=self.channels_last,
        )
        return _at_batch(ratios, self.batch_size)


class EstimatedLatency(MeasuredLatency):
    """For a goal without a latency: the whole network is timed for a moment, its parts count by their MACs."""

    source = "estimated from MACs"
    measures = False

    def time_models(self, group: Mapping[str, nn.Module], *, precise: bool = False) -> dict[str, float]:
        """Measured briefly: nothing is chosen by it."""
        times = interleaved_latency(
            group, self.batch, channels_last=self.channels_last, min_seconds=self.seconds, rounds=_GLANCE
        )
        return {name: statistics.median(rounds) for name, rounds in times.items()}


class LatencyTableFile:
    """A table that `shoal latency` wrote on another device.

    Raises:
        SpecError: no such file, or no such table.
    """

    measures = False

    def __init__(self, path: Path) -> None:
        if not os.path.lexists(path):
            raise SpecError(f"cannot read the latencies '{path}': No such file or directory", _HOW)
        with refusing(SpecError, f"'{path}' is an invalid latency table", _HOW):
            document = read_json(path)
            self.entries = {str(key): float(entry["ms"]) for key, entry in document["entries"].items()}
            self.whole = float(document["whole_ms"])
            self.batch = int(document["batch"])
            if not (0 < self.whole < math.inf and all(0 <= ms < math.inf for ms in self.entries.values())):
                raise ValueError("a time that is negative or not finite")
        self.source = f"{path.name} ({document.get('device', 'device unknown')}, batch {self.batch})"

    def time_modules(self, group: Mapping[str, nn.Module], shape: Shape) -> dict[str, float]:
        """As the table holds them.

        Raises:
            UsageError: a module that was not timed there.
        """
        missing = [key for key in group if key not in self.entries]
        if missing:
            raise UsageError(
                f"the latency table has no entry for {len(missing)} modules, the first is {missing[0]}",
                "It was made for another network or other spans: make it again with `shoal latency`.",
            )
        return {key: self.entries[key] for key in group}

    def time_models(self, group: Mapping[str, nn.Module], *, precise: bool = False) -> dict[str, float]:
        """Only the original is in the table."""
        return {WHOLE: self.whole}

    @property
    def batch_size(self) -> int:
        """That of the table."""
        return self.batch

    def time_ratios(self, group: Mapping[str, nn.Module], effort: Effort = "short") -> dict[str, LatencyRatio]:
        """Of no network but the original: a table knows the parts alone."""
        return {}


class LatencyFunction:
    """FILE.py:FUNCTION, called as function(module, (batch, *shape)) and returning milliseconds. It runs that file.

    Raises:
        SpecError: no such file or function.
    """

    measures = True

    def __init__(self, spec: str, batch: Batch) -> None:
        self.function: Callable[..., Any] = load_function(spec)
        self.batch, self.source = batch, Path(spec).name

    def at(self, batch: Batch) -> "LatencyFunction":
        """The same function for another mini-batch; its file is not run again."""
        other = copy.copy(self)
        other.batch = batch
        return other

    def time_modules(self, group: Mapping[str, nn.Module], shape: Shape) -> dict[str, float]:
        """What the function returns."""
        return {key: self._query(module, (self.batch.size, *shape)) for key, module in group.items()}

    def time_models(self, group: Mapping[str, nn.Module], *, precise: bool = False) -> dict[str, float]:
        """What the function returns for the shape of the first input."""
        shape = tuple(self.batch.tensors[0].shape)
        times = {key: self._query(module, shape) for key, module in group.items()}
        if not times.get("whole", 1.0):
            raise SpecError(f"the latency function {self.source} returned 0 for the whole network", _EXPECTED)
        return times

    @property
    def batch_size(self) -> int:
        """Of the mini-batch whose shape the function gets."""
        return self.batch.size

    def time_ratios(self, group: Mapping[str, nn.Module], effort: Effort = "short") -> dict[str, LatencyRatio]:
        """Of what the function returns: it is believed."""
        times = self.time_models(group)
        ratios = {name: ms / times[WHOLE] for name, ms in times.items() if name != WHOLE}
        exact = {name: LatencyRatio(ratio=ratio, low=ratio, high=ratio) for name, ratio in ratios.items()}
        return _at_batch(exact, self.batch_size)

    def _query(self, module: nn.Module, shape: Shape) -> float:
        try:
            latency_ms = float(self.function(module, shape))
        except Exception as error:
            check_memory(error, f"in the latency function {self.source}")
            raise SpecError(
                f"the latency function {self.source} raised {type(error).__name__} for {type(module).__name__} on"
                f" {shape}: {error}",
                "It is called as function(module, shape) and returns milliseconds.",
            ) from error
        if not 0 <= latency_ms < math.inf:
            raise SpecError(f"the latency function {self.source} returned {latency_ms}", _EXPECTED)
        return latency_ms


class SeveralBatchSizes:
    """One source at several batch sizes; a network is as fast as where it is the slowest, as a share of the original.

    Args:
        parts: the source at each batch size; modules are timed at the first, and by the cost model at all.
    """

    def __init__(self, parts: Sequence[LatencyBackend]) -> None:
        self.parts = tuple(parts)
        self.source, self.measures = self.parts[0].source, self.parts[0].measures

    @property
    def batch_size(self) -> int:
        """The first."""
        return self.parts[0].batch_size

    def time_modules(self, group: Mapping[str, nn.Module], shape: Shape) -> dict[str, float]:
        """At the first batch size."""
        return self.parts[0].time_modules(group, shape)

    def time_models(self, group: Mapping[str, nn.Module], *, precise: bool = False) -> dict[str, float]:
        """At the first batch size."""
        return self.parts[0].time_models(group, precise=precise)

    def time_ratios(self, group: Mapping[str, nn.Module], effort: Effort = "short") -> dict[str, LatencyRatio]:
        """The largest of all batch sizes."""
        measured = [part.time_ratios(group, effort) for part in self.parts]
        return {name: max((ratios[name] for ratios in measured), key=lambda ratio: ratio.ratio) for name in measured[0]}


def parts_of(backend: LatencyBackend) -> tuple[LatencyBackend, ...]:
    """The backend at each of its batch sizes."""
    return backend.parts if isinstance(backend, SeveralBatchSizes) else (backend,)


def _at_batch(ratios: Mapping[str, LatencyRatio], size: int) -> dict[str, LatencyRatio]:
    return {name: ratio.model_copy(update={"batch": size}) for name, ratio in ratios.items()}


_EXPECTED = "Expected milliseconds: at least 0, and more for the whole network."
_HOW = "Write one with `shoal latency MODEL DATA --out FILE` on the device."


def open_backend(spec: str, batch: Batch) -> LatencyBackend:
    """The backend of `--latency-from`: FILE (JSON) or FILE.py:FUNCTION.

    Raises:
        SpecError: neither.
    """
    if ".py:" in spec:
        return LatencyFunction(spec, batch)
    return LatencyTableFile(Path(spec))
