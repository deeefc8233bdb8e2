"""Run a command in a process that costs nothing to start: a fork of one that has imported everything.

A fault is a function that is called in the child before the command begins, or a signal sent after a time.
"""

import json
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shoal.cli import main

Fault = Callable[[Path], None]
_KILL = signal.SIGKILL  # under a name that the method `signal` does not hide


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, or minus the signal that ended it."""

    code: int
    seconds: float
    out: str
    err: str

    @property
    def error(self) -> dict[str, Any]:
        """The error of its JSON document; empty where there is none."""
        try:
            return json.loads(self.out).get("error", {})
        except ValueError:
            return {}


class Child:
    """A command that runs in `folder`, disturbed by `fault`."""

    def __init__(self, words: Sequence[str], folder: Path, fault: Fault | None = None) -> None:
        self.files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115 (closed where they are read)
        self.started = time.perf_counter()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(words, folder, fault)

    def _run(self, words: Sequence[str], folder: Path, fault: Fault | None) -> None:
        code = 70
        try:
            for number, file in enumerate(self.files, start=1):
                os.dup2(file.fileno(), number)
            os.chdir(folder)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # which is off in jobs of the background
            torch.set_num_threads(1)  # makes the pools of the fork whole before two threads of torch ask for one
            sys.argv = ["shoal", *words]
            if fault is not None:
                fault(folder)
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 70
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self, seconds: float | None = None, number: int = _KILL) -> Ended:
        """Its end; after `seconds` it is sent a signal, by default killed."""
        timer = threading.Timer(seconds, self.signal, (number,)) if seconds is not None else None
        if timer is not None:
            timer.start()
        # Not reaped before the timer is off: its process id must not belong to anyone else by then.
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        if timer is not None:
            timer.cancel()
            timer.join()
        _, status = os.waitpid(self.pid, 0)
        taken = time.perf_counter() - self.started
        out, err = (_text(file) for file in self.files)
        return Ended(os.waitstatus_to_exitcode(status), taken, out, err)


def _text(file: Any) -> str:
    file.seek(0)
    with file:
        return file.read().decode(errors="replace")


def kill_at_operation(number: int) -> Fault:
    """Kill the process right before its `number`-th operation on a file that it may write, counted from 1."""

    def fault(folder: Path) -> None:
        left = number

        def operation() -> None:
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

        _watch(folder, operation)

    return fault


def count_operations(path: Path) -> Fault:
    """Write a dot into `path` for every operation that `kill_at_operation` counts."""

    def fault(folder: Path) -> None:
        handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        _watch(folder, lambda: os.write(handle, b"."))

    return fault


def kill_inside_write(size: int) -> Fault:
    """Let the kernel kill the process in the middle of the write that makes a file larger than `size` bytes."""

    def fault(folder: Path) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return fault


def no_file_above(size: int) -> Fault:
    """Let every write fail that makes a file larger than `size` bytes."""

    def fault(folder: Path) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return fault


_PATHS = {"os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 1, "os.chmod": 1, "os.truncate": 1, "os.link": 2}


def _watch(folder: Path, operation: Callable[[], Any]) -> None:
    """Call `operation` right before everything that changes a file in `folder`, and before every flush to disk."""
    busy = False

    def concerns(event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "open":
            path, mode, flags = arguments
            written = flags & (os.O_WRONLY | os.O_RDWR) if mode is None else any(one in mode for one in "wax+")
            return bool(written) and _lies_in(path, folder)
        return any(_lies_in(path, folder) for path in arguments[: _PATHS.get(event, 0)])

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal busy
        if not busy and (event == "open" or event in _PATHS):
            busy = True
            try:
                if concerns(event, arguments):
                    operation()
            finally:
                busy = False

    fsync = os.fsync

    def flushed(handle: int) -> None:  # no audit event tells of it
        operation()
        fsync(handle)

    os.fsync = flushed
    sys.addaudithook(hook)


def _lies_in(path: Any, folder: Path) -> bool:
    return isinstance(path, (str, bytes, os.PathLike)) and Path(os.fsdecode(path)).absolute().is_relative_to(folder)
