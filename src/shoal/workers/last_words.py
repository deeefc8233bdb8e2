"""Words for a process that is ended without any: Ray exits at once where the head, or the node's raylet, is gone."""

import subprocess
import sys
from contextlib import suppress

# Says its argument once the other end of its input is closed, unless it was sent something before.
_LISTEN = "import sys; sys.stdin.buffer.read(1) or print(sys.argv[1], file=sys.stderr)"


class LastWords:
    """Another process that waits for the end of this one.

    Args:
        text: what it writes to standard error if this process ends without `withdraw`.
    """

    def __init__(self, text: str) -> None:
        command = [sys.executable, "-I", "-S", "-c", _LISTEN, text]
        # A Ctrl-C is for this process alone, which then withdraws.
        self._listener = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )

    def withdraw(self) -> None:
        """Nothing is to be said; the other process is gone afterwards."""
        with suppress(OSError, ValueError):  # it is gone already
            self._listener.communicate(b".")
