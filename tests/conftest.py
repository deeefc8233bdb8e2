"""What holds for every test."""

import sys
from importlib import import_module
from importlib.metadata import EntryPoint
from types import ModuleType, SimpleNamespace

import pytest

from shoal import plugins

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
