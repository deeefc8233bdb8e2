"""Keep what a C library prints off standard output: with --json that is for one document alone."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def silent_output() -> Iterator[None]:
    """While the context lasts, whatever is written to file descriptor 1, from C too, goes nowhere."""
    sys.stdout.flush()
    try:
        saved = os.dup(1)
    except OSError:  # there is no standard output to keep clean
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a file descriptor is what is needed
            os.dup2(nowhere.fileno(), 1)
            yield
    finally:
        # C keeps a buffer of its own, which would otherwise come out later.
        with suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).fflush(None)
        os.dup2(saved, 1)
        os.close(saved)
