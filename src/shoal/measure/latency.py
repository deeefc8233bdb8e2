"""The latency of one forward, of several networks in turn so that all are disturbed alike."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from timeit import Timer
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.benchmark.utils.timer import timer as clock  # it waits for the device

from shoal import record
from shoal.alignment import in_aligned_memory
from shoal.batches import Batch, call, device_of
from shoal.errors import DataError, ModelRaisedError, UsageError, check_memory
from shoal.preserve import copied, evaluating

# The largest size that glibc adapts to is 32 MiB.
_KEPT_BYTES = 31 * 2**20
_FEWEST = 5  # rounds, however slow a network is: quartiles of fewer say nothing


def latency(
    models: Mapping[str, nn.Module],
    batch: Batch,
    *,
    channels_last: bool = False,
    min_seconds: float = 1.0,
    rounds: int = 20,
) -> dict[str, record.Latency]:
    """Time one forward of each network on a batch: eval mode, inference mode, all of torch's threads.

    After a warm-up the networks take turns (A B A B ...); a turn is a timed block of as many forwards as fill
    its share of `min_seconds`. The figures are the median and quartiles over the blocks. The networks come
    back as they were.

    Args:
        models: the networks by name, each timed on the device it is on.
        batch: what they are called with; take(1) of it for the latency of a single sample.
        channels_last: time copies of the networks, and 4-d inputs, with the channels last in memory.
        min_seconds: timed seconds per network, about. A slow network takes longer: at least five forwards.
        rounds: how many turns each network gets; fewer, but at least five, where a single forward is slow.

    Returns:
        One record per name; times in milliseconds for the whole batch.

    Raises:
        UsageError: no networks, `min_seconds` <= 0 or `rounds` < 1.
        DataError: the batch holds no sample.
        ModelRaisedError: a network raised.
        SurgeryError: `channels_last`, and a network cannot be copied.
    """
    blocks = interleaved_latency(models, batch, channels_last=channels_last, min_seconds=min_seconds, rounds=rounds)
    return {
        name: _summary(model, batch.size, blocks[name], channels_last=channels_last) for name, model in models.items()
    }


def interleaved_latency(
    models: Mapping[str, nn.Module],
    batch: Batch,
    *,
    channels_last: bool = False,
    min_seconds: float = 1.0,
    rounds: int = 20,
) -> dict[str, list[float]]:
    """Milliseconds of each network in each turn, as `latency` takes them: entries at the same place are neighbours.

    A ratio of two networks is best taken turn by turn: what slows the machine down for a while hits both.
    """
    if not min_seconds > 0 or rounds < 1:
        raise UsageError(
            f"min_seconds = {min_seconds}, rounds = {rounds}",
            "Expected min_seconds > 0 and at least one round.",
        )
    with forwards_of(models, batch, channels_last=channels_last) as forwards:
        # Torch's own Timer warms up twice before each block: two thirds of the time, where a block is one forward. Its
        # clock waits for the device.
        timers = {name: Timer(forward, timer=clock) for name, forward in forwards.items()}
        return _take_turns(timers, min_seconds, rounds)


@contextmanager
def forwards_of(
    models: Mapping[str, nn.Module], batch: Batch, *, channels_last: bool = False
) -> Iterator[dict[str, Callable[[], Any]]]:
    """One forward of each network on the batch, ready to be timed: eval mode, inference mode, each called once.

    Raises:
        UsageError: no networks.
        DataError: the batch holds no sample.
        ModelRaisedError: a network raised, now or while it was timed.
        SurgeryError: `channels_last`, and a network cannot be copied.
    """
    if not models:
        raise UsageError("no networks to time", "Give at least one, by name.")
    if not batch.tensors or batch.size == 0:
        raise DataError("a batch without samples", "Give at least one sample to time with.")
    subjects = {name: _channels_last(model) for name, model in models.items()} if channels_last else dict(models)
    memory_format = torch.channels_last if channels_last else None
    with ExitStack() as stack:
        forwards: dict[str, Callable[[], Any]] = {}
        for name, model in subjects.items():
            stack.enter_context(evaluating(model))
            stack.enter_context(in_aligned_memory(model))
            inputs = batch.to(device_of(model), memory_format)
            # First without inference mode: a table that a model builds lazily and keeps must stay usable for
            # training.
            call(model, inputs)
            forwards[name] = partial(call, model, inputs)
        keep_freed_memory()
        with torch.inference_mode():
            try:
                yield forwards
            except Exception as error:
                check_memory(error, "while networks were timed")
                raise ModelRaisedError(
                    f"a network raised {type(error).__name__} while it was timed: {error}",
                    "It ran before: look for a counter or a memory limit in it.",
                ) from error


def keep_freed_memory() -> None:
    """Make glibc's allocator keep what a forward frees for the next one, as that of a long-running program does.

    In a young process it hands every activation back to the system, which clears the pages again at the next forward:
    up to half of the time of a small network, or none of it, depending on what the process did before. From the first
    large allocation that is freed the allocator keeps everything up to its size; that of other systems is not
    affected.
    """
    torch.ones(_KEPT_BYTES, dtype=torch.uint8)


def within_noise(first: record.Latency, second: record.Latency) -> bool:
    """Whether two latencies cannot be told apart.

    Where the second was compared with the first in pairs, the interval of the ratio decides, else whether their
    interquartile ranges overlap.
    """
    if second.ratio is not None:
        return second.ratio.is_within_noise
    return first.q1_ms <= second.q3_ms and second.q1_ms <= first.q3_ms


def _channels_last(model: nn.Module) -> nn.Module:
    # On a copy: converting back would not restore the strides of weights that had others before.
    return copied(model).to(memory_format=torch.channels_last)


def _take_turns(timers: Mapping[str, Timer], min_seconds: float, rounds: int) -> dict[str, list[float]]:
    """Milliseconds per forward of every block, by name."""
    single = {name: timer.timeit(1) for name, timer in timers.items()}
    affordable = int(min_seconds / max(*single.values(), 1e-9))
    turns = min(rounds, max(_FEWEST, affordable))
    number = {name: max(1, round(min_seconds / turns / max(seconds, 1e-9))) for name, seconds in single.items()}
    blocks: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(turns):
        for name, timer in timers.items():
            blocks[name].append(timer.timeit(number[name]) / number[name] * 1e3)
    return blocks


def _summary(model: nn.Module, size: int, blocks: list[float], *, channels_last: bool) -> record.Latency:
    q1, median, q3 = (float(value) for value in np.percentile(blocks, [25, 50, 75]))
    return record.Latency(
        batch=size,
        median_ms=median,
        q1_ms=q1,
        q3_ms=q3,
        runs=len(blocks),
        device=str(device_of(model)),
        dtype=_dtype(model),
        threads=torch.get_num_threads(),
        channels_last=channels_last,
    )


def _dtype(model: nn.Module) -> str:
    kinds = (tensor.dtype for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point())
    return str(next(kinds, torch.get_default_dtype())).removeprefix("torch.")
