"""Signals that ask a command to end: it leaves as after Ctrl-C, with everything in order and a word on how to go on."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from shoal.errors import Terminated

# A launcher and the system behind it may both send the signal, and who is in haste presses Ctrl-C twice: what comes
# within so many seconds after the first must not break off the tidying up.
_ONCE = 2.0


@contextmanager
def ending_in_order() -> Iterator["Ending"]:
    """Within its block SIGTERM, SIGHUP and SIGINT are raised in the main thread; in other threads nothing changes.

    Yields what tells whether one was. A signal that whoever started the process has turned off (`nohup`, a shell's
    background jobs) stays off.
    """
    raising, before = Ending(), dict[signal.Signals, Any]()
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    with suppress(ValueError):  # only the main thread may listen
        for number in numbers:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, raising)
    try:
        yield raising
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Ending:
    """Raises what a signal means, unless it has done so a moment ago; `exit_code` is 0 where none came."""

    def __init__(self) -> None:
        self.exit_code, self.raised_at = 0, -_ONCE

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Take a signal."""
        now = time.monotonic()
        if now - self.raised_at < _ONCE:
            return
        self.exit_code, self.raised_at = 128 + number, now
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)
