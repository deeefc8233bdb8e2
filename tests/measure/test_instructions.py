"""Instructions as `perf` counts them; where it does not, the reason. A script stands in for perf."""

import os
import sys

import pytest

from shoal.measure import instructions
from shoal.measure.instructions import instructions_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="perf is Linux's")

ANSWERING = """#!/bin/sh
trap '' INT
for word in "$@"; do case "$word" in fifo:*) fifos="${word#fifo:}" ;; esac; done
exec 3<>"${fifos%,*}" 4<>"${fifos#*,}"
while read -r word <&3; do
  echo ack >&4
  [ "$word" = disable ] && break
done
echo "COUNT,,instructions:u,1000,100.00,," >&2
"""


@pytest.fixture
def perf(tmp_path, monkeypatch):
    """Puts a perf of such a text first in the path."""

    def install(text):
        (tmp_path / "perf").write_text(text)
        (tmp_path / "perf").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setattr(instructions, "_PATIENCE", 2.0)

    return install


def test_the_count_is_that_of_one_call(perf):
    perf(ANSWERING.replace("COUNT", "3000"))
    calls = []
    assert instructions_of(lambda: calls.append(1)) == 1000.0
    assert len(calls) == 3


@pytest.mark.parametrize("count", ["<not supported>", "<not counted>", "0", ""])
def test_a_machine_without_the_counter_is_named(perf, count):
    perf(ANSWERING.replace("COUNT", count))
    reason = instructions_of(lambda: None)
    assert isinstance(reason, str)
    assert reason.startswith(f"perf says {count}")


def test_a_perf_that_may_not_watch_is_named(perf, monkeypatch):
    perf("#!/bin/sh\necho 'No permission' >&2\nexit 255\n")
    monkeypatch.setattr(instructions, "_PATIENCE", 0.3)
    assert instructions_of(lambda: None) == "perf does not answer: it may not watch this process"


def test_no_perf_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert instructions_of(lambda: None) == "perf is not installed"
