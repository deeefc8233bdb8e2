"""Threads on cores of their own while something is timed, and everything as before afterwards."""

import os
import threading
from pathlib import Path

import pytest
import torch

from shoal.measure import isolation
from shoal.measure.isolation import isolated_cores

ALLOWED = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
linux = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads are bound on Linux only")


def cores():
    return {entry.name: os.sched_getaffinity(int(entry.name)) for entry in Path("/proc/self/task").iterdir()}


@pytest.fixture
def alone():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@linux
@pytest.mark.usefixtures("alone")
@pytest.mark.skipif(ALLOWED == 1, reason="there is nothing to choose from")
@pytest.mark.parametrize("raises", [False, True])
def test_every_thread_is_bound_and_let_go(raises):
    before, stop, inside = cores(), threading.Event(), {}
    try:
        with isolated_cores() as message:
            inside.update(cores())
            threading.Thread(target=stop.wait, daemon=True).start()  # inherits the core
            if raises:
                raise KeyError
    except KeyError:
        pass
    assert {len(one) for one in inside.values()} == {1}
    assert message.startswith("isolated on core ")
    after = cores()
    stop.set()
    assert len(after) > len(before) - 1
    assert set(map(frozenset, after.values())) == set(map(frozenset, before.values()))


@linux
def test_the_least_busy_cores_are_taken(monkeypatch):
    looks = iter([{0: 10, 1: 10, 2: 10}, {0: 11, 1: 19, 2: 15}])
    monkeypatch.setattr(isolation, "_idle", lambda: next(looks))
    assert isolation._least_busy([0, 1, 2]) == [1, 2, 0]


@linux
def test_where_all_cores_are_needed_nothing_is_changed(monkeypatch):
    before = cores()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *args: pytest.fail("bound"))
    with isolated_cores() as message:
        assert cores() == before
    assert message.startswith("not isolated: 64 threads need all ")


def test_a_system_without_it_is_named(monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    with isolated_cores() as message:
        assert message == "not isolated: this system does not bind threads to cores"
