"""What C prints does not reach standard output."""

import ctypes
import os

from shoal.plan.silence import silent_output


def test_what_c_prints_goes_nowhere(capfd) -> None:
    libc = ctypes.CDLL(None)
    os.write(1, b"before\n")
    with silent_output():
        libc.puts(b"from C")
        os.write(1, b"from a descriptor")
    os.write(1, b"after\n")
    libc.fflush(None)
    assert capfd.readouterr().out == "before\nafter\n"
