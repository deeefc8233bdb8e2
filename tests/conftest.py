"""What holds for every test."""

import sys
from functools import wraps
from importlib import import_module
from importlib.metadata import EntryPoint
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings

from shoal import plugins

_SECONDS = 0.02

# How long an example takes to make or to run hangs on the machine, and says nothing about the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session", autouse=True)
def short_timing():
    """Latencies are measured, but for a moment: what a test asserts never hangs on how long a forward took."""
    timing, pairing = (import_module(f"shoal.measure.{name}") for name in ("latency", "latency_ratio"))
    take_turns, take_pairs = timing._take_turns, pairing._take_pairs

    @wraps(take_pairs)
    def short_pairs(timer, reference, precision, max_seconds):
        return take_pairs(timer, reference, precision, min(max_seconds, _SECONDS))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            timing, "_take_turns", lambda timers, seconds, rounds: take_turns(timers, min(seconds, _SECONDS), rounds)
        )
        patch.setattr(pairing, "_take_pairs", short_pairs)
        yield


@pytest.fixture
def install_plugins(monkeypatch):
    """Entry points as (distribution, name, value) that importlib.metadata finds; returns the groups looked up."""

    def install(group, *entries):
        made = [
            EntryPoint(name, value, group)._for(SimpleNamespace(name=distribution) if distribution else None)
            for distribution, name, value in entries
        ]
        lookups = []

        def entry_points(*, group):
            lookups.append(group)
            return tuple(entry for entry in made if entry.group == group)

        monkeypatch.setattr(plugins, "entry_points", entry_points)
        return lookups

    return install


@pytest.fixture
def install_third_party(install_plugins, monkeypatch):
    """A distribution 'third' whose module has these values, as entries of a group that a table reads."""

    def install(group, table, **values):
        module = ModuleType("third_party")
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, "third_party", module)
        install_plugins(group, *(("third", name, f"third_party:{name}") for name in values))
        monkeypatch.setattr(table, "_entries", None)
        monkeypatch.setattr(table, "_loaded", {})

    return install
