"""Keep the threads of this process on cores of their own while something is timed: no move from core to core."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

_TASKS, _STAT = Path("/proc/self/task"), Path("/proc/stat")
_WATCHED_SECONDS = 0.1


@contextmanager
def isolated_cores() -> Iterator[str]:
    """Bind every thread to as many cores as torch uses, the least busy of those allowed; afterwards all is as before.

    Yields what was done, or why nothing was: only Linux lets a process bind each of its threads, and where torch uses
    all cores there is nothing to choose from.
    """
    if not hasattr(os, "sched_setaffinity") or not _TASKS.exists():
        yield "not isolated: this system does not bind threads to cores"
        return
    allowed, count = sorted(os.sched_getaffinity(0)), torch.get_num_threads()
    if count >= len(allowed):
        yield f"not isolated: {count} threads need all {len(allowed)} cores"
        return
    before = {thread: os.sched_getaffinity(thread) for thread in _threads()}
    chosen = sorted(_least_busy(allowed)[:count])
    try:
        _bind(dict.fromkeys(before, chosen))
        yield f"isolated on core{'s' if count > 1 else ''} {', '.join(map(str, chosen))}"
    finally:
        # Threads that were started meanwhile have inherited the cores.
        _bind({thread: before.get(thread, set(allowed)) for thread in _threads()})


def _threads() -> list[int]:
    return [int(entry.name) for entry in _TASKS.iterdir()]


def _bind(cores: dict[int, set[int]] | dict[int, list[int]]) -> None:
    for thread, its_cores in cores.items():
        with suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(thread, its_cores)


def _least_busy(cores: list[int]) -> list[int]:
    """The cores, the idlest first."""
    before = _idle()
    time.sleep(_WATCHED_SECONDS)
    after = _idle()
    return sorted(cores, key=lambda core: before.get(core, 0) - after.get(core, 0))


def _idle() -> dict[int, int]:
    """Ticks that each core has idled."""
    rows = (line.split() for line in _STAT.read_text().splitlines())
    return {int(row[0][3:]): int(row[4]) for row in rows if row and row[0][:3] == "cpu" and row[0] != "cpu"}
