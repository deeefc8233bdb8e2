"""Kinds are timed by workers that are alone on their nodes, or by this process; each once, whatever comes between."""

import pickle
from dataclasses import dataclass

import pytest
import torch
from footing import batches, network

import stopwatch
from shoal.blocks import analyze
from shoal.errors import WorkersError
from shoal.pipeline import kind_timing
from shoal.pipeline.cache import MeasurementCache
from shoal.pipeline.candidate_table import timed_modules
from shoal.pipeline.costs import CostModel
from shoal.pipeline.kind_timing import KindTimer
from shoal.pipeline.latency_backends import MeasuredLatency
from shoal.pipeline.profiling import PlacedModule
from shoal.replace import REPLACEMENTS, build_segments
from shoal.workers import LocalWorkers, RayWorkers, timing_workers


@dataclass
class Pair:
    """Two workers that unpickle what they are started with; the last task comes back first."""

    count: int = 2
    unlike: int = 0  # so many answers come from another kind of machine
    lost_after: int | None = None
    starts = 0

    def start(self, function):
        self.starts += 1
        self.function = pickle.loads(pickle.dumps(function))

    def results(self, tasks):
        for done, task in enumerate(reversed(list(tasks))):
            if done == self.lost_after:
                raise WorkersError("lost", "again")
            self.function.asked_on = ("another",) if done < self.unlike else KindTimer.machine.fget(self.function)
            yield task.own, self.function(task.own, None)

    def stop(self):
        pass


@pytest.fixture
def timed(monkeypatch):
    """The kinds that were timed, in turns, by the fake clock."""
    stopwatch.install(monkeypatch)
    turns = []

    def shares(model, segments, kinds, batch, **more):
        turns.append(set(kinds))
        return stopwatch.shares_in_place(model, segments, kinds, batch, **more)

    monkeypatch.setattr(kind_timing, "latency_shares", shares)
    monkeypatch.setattr(kind_timing, "timing_workers", lambda workers: workers)
    return turns


def measured(workers=None, cache=None):
    """The costs of a small network and of all that may take the place of its blocks."""
    [data] = batches(4, 3, 8, 8, count=1)
    graph = analyze(network(), data.take(2))
    segments = build_segments(graph)
    backend = MeasuredLatency(next(graph.model.parameters()), data)
    costs = CostModel(graph, segments, data, backend, cache or MeasurementCache(None, {}), workers)
    costs.measure(timed_modules(graph, segments, tuple(REPLACEMENTS), 3))
    return costs.latencies()


def test_workers_come_to_the_same_and_each_kind_is_timed_once(timed):
    here = measured()
    assert len(timed) == 1
    del timed[:]
    pair = Pair()
    assert measured(pair) == pytest.approx(here)
    assert pair.starts == 1
    assert len(timed) == 4
    assert sum(map(len, timed)) == len(set.union(*timed))


def test_what_came_back_is_in_the_journal_and_is_not_timed_again(timed, tmp_path):
    here = measured()
    del timed[:]
    with pytest.raises(WorkersError):
        measured(Pair(lost_after=2), MeasurementCache(tmp_path / "t", {}))
    before = set.union(*timed)
    del timed[:]
    assert measured(Pair(), MeasurementCache(tmp_path / "t", {})) == pytest.approx(here)
    assert timed
    assert not before & set.union(*timed)
    del timed[:]
    measured(Pair(), MeasurementCache(tmp_path / "t", {}))
    assert not timed


@pytest.mark.parametrize("unlike", [1, 4])
def test_a_machine_unlike_this_one_times_nothing_and_this_process_does(timed, unlike):
    here = measured()
    del timed[:]
    assert measured(Pair(unlike=unlike)) == pytest.approx(here)
    assert len(timed) == 4
    assert sum(map(len, timed)) == len(set.union(*timed))


@pytest.mark.parametrize("change", ["processor", "device", "threads"])
def test_a_machine_is_unlike_by_processor_device_or_threads(timed, monkeypatch, change):
    [data] = batches(4, 3, 8, 8, count=1)
    graph = analyze(network(), data.take(2))
    timer = KindTimer(graph.model, build_segments(graph), {}, data)
    assert timer((), None) is not None
    real = kind_timing.machine
    monkeypatch.setattr(kind_timing, "machine", lambda device: real(device).model_copy(update={change: 999}))
    assert timer((), None) is None


def test_portions_are_of_whole_layouts():
    kinds = {f"{block}-{kind}": PlacedModule(torch.nn.Identity(), (1,), (block,)) for kind in "uvw" for block in "ab"}
    timer = KindTimer(network(), None, kinds, batches(1, 3, 8, 8, count=1)[0])
    assert timer._portions(1) == [tuple(kinds)]
    assert sorted(map(set, timer._portions(9)), key=sorted) == [{f"a-{kind}", f"b-{kind}"} for kind in "uvw"]
    assert len(timer._portions(2)) == 2
    timer.kinds = {}
    assert timer._portions(4) == [()]


def test_on_one_machine_this_process_times_and_on_a_cluster_workers_with_nodes_of_their_own(monkeypatch):
    pytest.importorskip("ray")
    assert isinstance(timing_workers(RayWorkers(4)), LocalWorkers)
    assert isinstance(timing_workers(Pair()), LocalWorkers)
    monkeypatch.setattr("shoal.workers.on_ray._check_answers", lambda address: None)
    there = timing_workers(RayWorkers(4, "10.0.0.1:6379", gpu=True))
    assert (there.count, there.address, there.gpu, there.exclusive) == (4, "10.0.0.1:6379", True, True)
