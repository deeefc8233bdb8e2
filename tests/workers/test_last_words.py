"""A process that ends without a word leaves some; tried in processes of their own, without Shoal's other imports."""

import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src/shoal/workers/last_words.py"


def ended(code):
    """What such a process leaves on standard error."""
    program = f"import os, signal\nexec(open({str(SOURCE)!r}).read())\nwords = LastWords('it is gone')\n{code}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("code", ["os._exit(1)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_who_ends_at_once_has_the_last_words(code):
    process = ended(code)
    assert process.returncode != 0
    assert process.stderr == "it is gone\n"
    assert process.stdout == ""


@pytest.mark.parametrize("code", ["words.withdraw()", "words.withdraw(); words.withdraw()"])
def test_what_is_withdrawn_is_not_said(code):
    process = ended(code)
    assert (process.returncode, process.stderr) == (0, "")
