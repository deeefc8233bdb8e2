"""What one of several processes knows comes to the others; real processes are in tests/pipeline and tests/recover."""

import pytest
import torch

from shoal.errors import WorkersError
from shoal.training import processes
from shoal.training.processes import alone, are_several, broadcast_from_main, from_main


class Store(dict):
    """A store of torch.distributed, in one process."""

    def set(self, key, value):
        self[key] = value.encode()

    def check(self, keys):
        return all(key in self for key in keys)


class State:
    def __init__(self, first):
        self.is_main_process = first


@pytest.fixture
def store(monkeypatch):
    """Two processes, of which this one is the first."""
    shared = Store()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "_store", lambda: shared)
    monkeypatch.setattr(processes, "_PAUSE", 0.001)
    monkeypatch.setattr(processes, "joined", lambda device: State(first=True))
    monkeypatch.setattr(processes, "broadcast_from_main", lambda value, device: value)
    return shared


def test_one_process_tells_itself(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert broadcast_from_main({"a": 1}, "cpu") == {"a": 1}
    assert from_main(lambda: 7, "cpu") == 7


def test_of_several_processes_the_main_one_is_asked(monkeypatch):
    import accelerate
    import accelerate.utils

    asked = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(accelerate, "PartialState", lambda *, cpu: asked.append(cpu))
    monkeypatch.setattr(accelerate.utils, "broadcast_object_list", lambda told: told.__setitem__(0, "of the first"))
    assert broadcast_from_main("mine", "cpu") == "of the first"
    assert broadcast_from_main("mine", "cuda") == "of the first"
    assert asked == [True, False]


def test_the_first_process_computes_alone_and_announces_it(store):
    assert from_main(are_several, "cpu") is False
    assert are_several()
    assert list(store.values()) == [b"done"]


def test_the_first_process_announces_that_it_failed(store):
    with pytest.raises(ZeroDivisionError):
        from_main(lambda: 1 / 0, "cpu")
    assert list(store.values()) == [b"failed"]
    assert are_several(), "the one that is alone is so only while it computes"


@pytest.mark.parametrize("end", ["failed", "gone"])
def test_the_others_end_where_the_first_failed_or_is_gone(store, monkeypatch, end):
    def check(keys):
        if end == "gone":
            raise RuntimeError("Connection reset by peer")
        store.set(keys[0], end)
        return True

    monkeypatch.setattr(processes, "joined", lambda device: State(first=False))
    monkeypatch.setattr(store, "check", check)
    with pytest.raises(WorkersError, match="process 0 failed"):
        from_main(lambda: pytest.fail("it is not this one's"), "cpu")


def test_alone_ends_with_its_block(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with alone():
        assert not are_several()
    assert are_several()


def test_a_process_that_ends_while_all_are_joining_is_named(monkeypatch):
    import accelerate

    def reset(**options):
        raise torch.distributed.DistNetworkError("Connection reset by peer\n and what gloo has to say about it")

    monkeypatch.setattr(accelerate, "PartialState", reset)
    with pytest.raises(WorkersError, match=r"joining \(Connection reset by peer\), and the others cannot go on alone"):
        processes.joined("cpu")
