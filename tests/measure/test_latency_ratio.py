"""Ratios of latencies on a clock that is made up: what the machine does to it is known, and so is the true ratio."""

import gc
import importlib
import math
import time

import numpy as np
import pytest
import torch
from torch import nn

from shoal.batches import Batch
from shoal.errors import DataError, ModelRaisedError, UsageError
from shoal.measure import latency_ratios
from shoal.measure.latency_ratio import ratio_of_pairs

ROOM = importlib.import_module("shoal.measure.latency_ratio")
BATCH = Batch((torch.zeros(1, 2),))


@pytest.fixture(autouse=True)
def as_long_as_it_takes(monkeypatch):
    """Elsewhere pairs are timed for a moment."""
    monkeypatch.setattr(ROOM, "_take_pairs", ROOM._take_pairs.__wrapped__)


class Machine:
    """Time passes only while networks run: `slowness(now, network)` times as fast as on a machine of their own.

    Args:
        slowness: by what a forward takes longer.
        waits: whether the thread waits of its own accord in a forward, by network.
    """

    def __init__(self, slowness=lambda now, name: 1.0, waits=lambda name: False):
        self.slowness, self.waits = slowness, waits
        self.now, self.ran, self.waited = 0.0, 0.0, 0
        self.calls = []

    def run(self, name, seconds):
        self.calls.append(name)
        self.now += seconds * self.slowness(self.now, name)
        self.ran += seconds
        self.waited += self.waits(name)

    def install(self, monkeypatch, counted=True):
        monkeypatch.setattr(ROOM, "clock", lambda: self.now)
        monkeypatch.setattr(ROOM, "voluntary_waits", lambda: self.waited if counted else math.nan)
        monkeypatch.setattr(time, "thread_time", lambda: self.ran)
        return self


class Takes(nn.Module):
    """A network that takes so many milliseconds on a machine of its own."""

    def __init__(self, machine, name, ms):
        super().__init__()
        self.machine, self.name, self.ms = machine, name, ms

    def forward(self, x):
        self.machine.run(self.name, 1e-3 * self.ms)
        return x


def measured(machine, original=20.0, network=10.0, **settings):
    models = {"original": Takes(machine, "original", original), "network": Takes(machine, "network", network)}
    return latency_ratios(models, BATCH, reference="original", **settings)["network"]


def bursts(random, share=0.1, slow=8.0, seconds=0.05):
    """A neighbour that takes the machine for a while, now and then."""
    busy = random.random(100_000) < share
    return lambda now, name: slow if busy[int(now / seconds) % len(busy)] else 1.0


def drifting(now, name):
    """It becomes three times as slow within the first seconds, then fast again."""
    return 2.0 + math.sin(now / 3)


def heavy_tailed(random):
    """Every forward is disturbed, most a little, some a lot."""
    return lambda now, name: 1.0 + 0.03 * random.pareto(1.2)


NOISES = {
    "none": lambda random: lambda now, name: 1.0,
    "bursts": bursts,
    "drift": lambda random: drifting,
    "heavy tails": heavy_tailed,
    "spread": lambda random: lambda now, name: math.exp(random.normal(0, 0.05)),
}


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("true", [0.3, 1.0])
def test_the_wall_clock_of_a_noisy_machine_tells_the_ratio(monkeypatch, noise, true):
    machine = Machine(NOISES[noise](np.random.default_rng(3))).install(monkeypatch, counted=False)
    ratio = measured(machine, 20.0, 20.0 * true, max_seconds=300)
    assert ratio.clock == "wall"
    assert ratio.is_precise
    assert ratio.width <= 0.01
    assert ratio.ratio == pytest.approx(true, rel=0.012)
    assert ratio.low <= ratio.ratio <= ratio.high


@pytest.mark.parametrize("pairs", [12, 60])
def test_intervals_hold_the_ratio_about_as_often_as_they_say(pairs):
    hits = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        original, network = (ms * (1 + 0.03 * random.pareto(1.2, pairs)) for ms in (20.0, 18.0))
        ratio = ratio_of_pairs(original, network)
        hits += ratio.low <= 0.9 <= ratio.high
    assert hits >= 90


def test_neighbours_that_are_disturbed_alike_make_the_interval_wider():
    hits = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        spells = np.repeat(random.normal(0, 0.05, 20), 10)  # the network suffers more than the original
        hits += (ratio := ratio_of_pairs(np.ones(200), 0.5 * np.exp(spells))).low <= 0.5 <= ratio.high
    assert hits >= 86


def test_networks_of_one_machine_are_timed_in_alternating_order_side_by_side(monkeypatch):
    machine = Machine().install(monkeypatch)
    measured(machine, 20.0, 20.0)
    turns = machine.calls[8:]  # behind the first calls and the estimates
    assert len(turns) > 48
    assert turns == (["original", "network", "network", "original"] * len(turns))[: len(turns)]


def test_blocks_of_a_pair_last_equally_long(monkeypatch):
    machine = Machine().install(monkeypatch)
    measured(machine, 30.0, 10.0)
    assert machine.calls.count("network") - 4 == pytest.approx(4 * (machine.calls.count("original") - 4), rel=0.1)


def test_short_forwards_are_timed_in_blocks(monkeypatch):
    machine = Machine().install(monkeypatch)
    ratio = measured(machine, 0.05, 0.02)
    assert ratio.ratio == pytest.approx(0.4)
    assert ratio.original_ms == pytest.approx(0.05)
    assert machine.calls.count("network") > 200 * ratio.rounds


def test_what_other_programs_take_from_the_thread_does_not_count(monkeypatch):
    random = np.random.default_rng(0)
    machine = Machine(lambda now, name: random.pareto(0.5) + 1).install(monkeypatch)  # hopeless by the wall clock
    ratio = measured(machine)
    assert (ratio.clock, ratio.is_precise) == ("running", True)
    assert ratio.ratio == pytest.approx(0.5)


@pytest.mark.parametrize("waiting", ["original", "network"])
def test_a_network_that_waits_is_timed_by_the_wall_clock(monkeypatch, waiting):
    def slowness(now, name):
        return 2.0 if name == waiting else 1.0  # it spends half of its time in another thread

    machine = Machine(slowness, waits=lambda name: name == waiting).install(monkeypatch)
    ratio = measured(machine)
    assert ratio.clock == "wall"
    assert ratio.ratio == pytest.approx(0.25 if waiting == "original" else 1.0)


def test_few_pairs_that_waited_are_left_out(monkeypatch):
    random = np.random.default_rng(0)
    machine = Machine(lambda now, name: random.pareto(0.5) + 1)
    machine.waits = lambda name: random.random() < 0.02
    ratio = measured(machine.install(monkeypatch))
    assert ratio.clock == "running"
    assert ratio.ratio == pytest.approx(0.5)


def test_time_runs_out_on_a_machine_that_is_too_noisy_and_the_interval_says_so(monkeypatch):
    random = np.random.default_rng(0)
    machine = Machine(lambda now, name: math.exp(random.normal(0, 0.8))).install(monkeypatch, counted=False)
    ratio = measured(machine, max_seconds=2.0)
    assert not ratio.is_precise
    assert ratio.width > 0.01
    assert ratio.precision == 0.01
    assert ratio.low <= 0.5 <= ratio.high
    assert 2.0 <= machine.now <= 5.0


def test_a_slow_network_gets_five_pairs(monkeypatch):
    ratio = measured(Machine().install(monkeypatch), 9000.0, 4500.0, max_seconds=1e-3)
    assert ratio.rounds == 5
    assert ratio.ratio == pytest.approx(0.5)


def test_precision_is_that_of_the_caller(monkeypatch):
    def rounds(precision):
        random = np.random.default_rng(0)
        noise = Machine(lambda now, name: math.exp(random.normal(0, 0.05))).install(monkeypatch, counted=False)
        return measured(noise, precision=precision, max_seconds=600).rounds

    assert rounds(0.01) > 5 * rounds(0.04)


def test_regimes_in_which_the_ratio_differs_make_the_interval_wide(monkeypatch):
    """As long as they last: a ratio of 0.5 in one half of the time and of 0.6 in the other is no ratio known to 1 %."""

    def slowness(now, name):
        return 1.2 if name == "network" and int(now / 0.4) % 2 else 1.0

    ratio = measured(Machine(slowness).install(monkeypatch, counted=False), max_seconds=8)
    assert not ratio.is_precise
    assert ratio.low < 0.5 * 1.1 < ratio.high


def test_drift_of_the_ratio_and_of_the_machine():
    original = np.linspace(1.0, 2.0, 90)
    ratio = ratio_of_pairs(original, original * np.repeat([0.5, 0.6], 45))
    assert ratio.drift == pytest.approx(0.2, abs=0.02)
    assert ratio.drift_interval[0] <= ratio.drift <= ratio.drift_interval[1]
    assert ratio.original_drift > 0.3
    steady = ratio_of_pairs(np.ones(90), np.ones(90))
    assert (steady.drift, steady.original_drift) == (pytest.approx(0), pytest.approx(0))


def test_each_network_stops_when_it_is_known(monkeypatch):
    random = np.random.default_rng(0)
    machine = Machine(lambda now, name: math.exp(random.normal(0, 0.1)) if name == "noisy" else 1.0)
    machine.install(monkeypatch, counted=False)
    models = {name: Takes(machine, name, 20.0) for name in ("steady", "whole", "noisy")}
    ratios = latency_ratios(models, BATCH, reference="whole", max_seconds=60)
    assert list(ratios) == ["steady", "noisy"]
    assert ratios["steady"].rounds < 80 < ratios["noisy"].rounds
    assert ratios["noisy"].is_precise


def test_a_pair_is_trimmed_as_a_whole():
    original, network = [1.0] * 50, [0.5] * 50
    original[3], network[7], network[8] = 40.0, 90.0, 1e-6
    assert ratio_of_pairs(original, network).ratio == pytest.approx(0.5)


def test_networks_come_back_as_they_were_and_are_really_timed():
    network, original = nn.Linear(4, 4).train(), nn.Sequential(*[nn.Linear(4, 4) for _ in range(40)]).train()
    assert gc.isenabled()
    ratios = latency_ratios(
        {"a": original, "b": network}, Batch((torch.zeros(1, 4),)), reference="a", max_seconds=0.05, precision=0.5
    )
    assert ratios["b"].ratio < 0.5
    assert gc.isenabled()
    assert network.training
    assert original.training


def test_the_reference_alone_has_no_ratio(monkeypatch):
    assert latency_ratios({"a": Takes(Machine(), "a", 1.0)}, BATCH, reference="a") == {}


def test_a_network_that_raises():
    class Broken(nn.Identity):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls > 1:
                raise ValueError("broken on purpose")
            return x

    with pytest.raises(ModelRaisedError, match="broken on purpose"):
        latency_ratios({"a": nn.Identity(), "b": Broken()}, BATCH, reference="a")
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reference": "c"}, "'c' is none of the networks to time: 'a', 'b'"),
        ({"reference": "a", "precision": 0}, "precision"),
        ({"reference": "a", "precision": math.nan}, "precision"),
        ({"reference": "a", "max_seconds": -1}, "max_seconds"),
        ({"reference": "a", "max_seconds": "long"}, "max_seconds"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        latency_ratios({"a": nn.Identity(), "b": nn.Identity()}, BATCH, **settings)


def test_nothing_to_time_is_refused():
    with pytest.raises(DataError):
        latency_ratios({"a": nn.Identity(), "b": nn.Identity()}, Batch((torch.zeros(0, 2),)), reference="a")


@pytest.mark.parametrize(
    ("counts", "ratio", "conditions"),
    [
        ({"original": 200.0, "network": 50.0}, 0.25, []),
        (
            {"original": "perf is not installed", "network": "perf is not installed"},
            None,
            ["instructions not counted:"],
        ),
        ({"original": 200.0, "network": "perf says 0"}, None, ["instructions not counted: perf says 0"]),
    ],
)
def test_instructions_are_a_second_opinion(monkeypatch, counts, ratio, conditions):
    machine = Machine().install(monkeypatch)
    monkeypatch.setattr(ROOM, "instructions_of", lambda forward: counts[forward.args[0].name])
    found = measured(machine, instructions=True)
    assert found.instructions == ratio
    assert len(found.conditions) == len(conditions)
    assert all(said.startswith(start) for said, start in zip(found.conditions, conditions, strict=True))
    assert measured(machine).conditions == []


def test_isolation_is_told_only_where_it_was_asked_for(monkeypatch):
    machine = Machine().install(monkeypatch)
    [told] = measured(machine, isolate=True).conditions
    assert "isolated" in told
