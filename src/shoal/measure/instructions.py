"""Instructions of a forward by the processor's own counter, where Linux lets `perf` read it: no clock, so no noise.

A second opinion only: instructions that wait for memory take longer than others.
"""

import os
import select
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_EVENT, _FORWARDS, _PATIENCE = "instructions:u", 3, 5.0


class _NotCountedError(Exception):
    """Why instructions cannot be counted here; never leaves this module."""


def instructions_of(forward: Callable[[], Any]) -> float | str:
    """Instructions of one call, in user mode, over all threads of the process; or why they cannot be counted here."""
    try:
        return _counted(forward)
    except _NotCountedError as error:
        return str(error)


def _counted(forward: Callable[[], Any]) -> float:
    perf = shutil.which("perf")
    if perf is None or not hasattr(os, "mkfifo"):
        raise _NotCountedError("perf is not installed")
    with TemporaryDirectory(prefix="shoal-perf-") as folder:
        paths = [Path(folder) / name for name in ("control", "answers")]
        for path in paths:
            os.mkfifo(path)
        # Opened for both: opening for one would wait for the other side.
        control, answers = (os.open(path, os.O_RDWR) for path in paths)
        command = [perf, "stat", "-x,", "-e", _EVENT, "-D", "-1", "--control", f"fifo:{paths[0]},{paths[1]}"]
        counter = subprocess.Popen([*command, "-p", str(os.getpid())], stderr=subprocess.PIPE, text=True)
        try:
            _ask("enable", control, answers)
            for _ in range(_FORWARDS):
                forward()
            _ask("disable", control, answers)
            counter.send_signal(signal.SIGINT)
            _, printed = counter.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired as error:
            raise _NotCountedError("perf does not answer") from error
        finally:
            counter.kill()
            counter.wait()
            os.close(control)
            os.close(answers)
    return _count_in(printed) / _FORWARDS


def _ask(word: str, control: int, answers: int) -> None:
    os.write(control, f"{word}\n".encode())
    if not select.select([answers], [], [], _PATIENCE)[0]:
        raise _NotCountedError("perf does not answer: it may not watch this process")
    os.read(answers, 64)


def _count_in(printed: str) -> float:
    line = next((line for line in printed.splitlines() if _EVENT.removesuffix(":u") in line), "")
    count = line.split(",")[0]
    if not count.isdigit() or int(count) == 0:
        raise _NotCountedError(f"perf says {count or printed.strip()[:80] or 'nothing'}")
    return float(count)
