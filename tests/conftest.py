"""What holds for every test."""

from importlib import import_module

import pytest

_SECONDS = 0.02


@pytest.fixture(scope="session", autouse=True)
def short_timing():
    """Latencies are measured, but for a moment: what a test asserts never hangs on how long a forward took."""
    timing = import_module("shoal.measure.latency")
    take_turns = timing._take_turns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            timing, "_take_turns", lambda timers, seconds, rounds: take_turns(timers, min(seconds, _SECONDS), rounds)
        )
        yield
