import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

import networks
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.pipeline import removal_screen
from shoal.pipeline.goals import RemoveBlocks
from shoal.pipeline.greedy import GreedyRemoval
from shoal.pipeline.removal_screen import RemovalScreen
from shoal.scanning import RemovalDamage, RemovalSweeps, divergence, removal_sweep


def damage(name, value):
    return RemovalDamage(name, value, (value, value), 8)


class Measured:
    """A stand-in for the sweep, which notes what it was asked for."""

    def __init__(self, values):
        self.values, self.calls = values, []

    def __call__(self, names):
        self.calls.append(list(names))
        return [damage(name, self.values[name]) for name in names]


def test_without_earlier_figures_everything_is_measured():
    measure = Measured({f"b{n}": float(n) for n in range(20)})
    assert len(RemovalScreen().measure(list(measure.values), measure)) == 20
    assert measure.calls == [list(measure.values)]


def test_what_was_far_behind_is_left_out_and_bounded():
    before = {f"b{n}": 0.1 * n for n in range(30)}
    now = {name: value + 0.2 + 0.001 * (n % 3) for n, (name, value) in enumerate(before.items())}
    screen, measure = RemovalScreen.of(damage(*item) for item in before.items()), Measured(now)
    result = screen.measure(list(before), measure)
    assert [entry.path for entry in result] == [f"b{n}" for n in range(6)]
    assert screen.measured == {f"b{n}": now[f"b{n}"] for n in range(6)}
    assert set(screen.expected) == {f"b{n}" for n in range(6, 30)}
    assert all(value == pytest.approx(now[name], abs=0.01) for name, value in screen.expected.items())
    assert all(0 < variance < 1e-5 for variance in screen.variance.values())


def test_what_is_left_out_for_long_becomes_less_certain():
    values = {f"b{n}": 0.1 * n for n in range(30)}
    screen, variances = RemovalScreen.of(damage(*item) for item in values.items()), []
    for step in range(3):
        values = {name: value + 0.2 + 0.001 * ((n + step) % 3) for n, (name, value) in enumerate(values.items())}
        screen.measure(list(values), Measured(values))
        variances.append(screen.variance["b29"])
    assert variances == sorted(variances)
    assert variances[2] > 2 * variances[0] > 0


def test_growths_that_differ_widely_leave_nothing_out():
    before = {f"b{n}": 1 + 0.1 * n for n in range(12)}
    now = {name: value * (1 if n % 2 else 3) for n, (name, value) in enumerate(before.items())}
    result = RemovalScreen.of(damage(*item) for item in before.items()).measure(list(before), Measured(now))
    assert len(result) == 12


def test_what_was_never_measured_is_measured_now():
    before = {f"b{n}": float(n) for n in range(20)}
    now = {**{name: value + 1 for name, value in before.items()}, "new": 0.5}
    result = RemovalScreen.of(damage(*item) for item in before.items()).measure(
        ["b19", *before, "new"][1:], Measured(now)
    )
    assert min(result, key=lambda entry: entry.damage).path == "new"
    assert [entry.path for entry in result] == [name for name in [*before, "new"] if name in {e.path for e in result}]


@pytest.mark.parametrize("seed", range(6))
def test_over_many_steps_the_winner_is_that_of_an_exhaustive_search(seed):
    rng = np.random.default_rng(seed)
    values = {f"b{n}": float(value) for n, value in enumerate(rng.lognormal(0, 0.7, 40))}
    screen, count = RemovalScreen.of(damage(*item) for item in values.items()), 0
    for _ in range(10):
        best = min(values, key=values.__getitem__)
        del values[best]
        growth = rng.uniform(0.05, 0.2)
        values = {name: value + growth * rng.normal(1, 0.2) for name, value in values.items()}
        result = screen.measure(list(values), Measured(values))
        count += len(result)
        assert min(result, key=lambda entry: entry.damage).path == min(values, key=values.__getitem__)
        screen = RemovalScreen.read(json.loads(json.dumps(asdict(screen))))
    assert count < 0.6 * sum(range(30, 40))


def images(seed):
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def chooser(model, data, **more):
    return GreedyRemoval(analyze(model, data[0]), RemoveBlocks(3), data, data, **more)


def deep_network():
    torch.manual_seed(0)
    model = networks.randomised(networks.PreactNet(6, 16))
    with torch.no_grad():
        for number, block in enumerate(model.blocks):
            block.conv2.weight.mul_(0.02 * 1.35**number)
            block.conv2.bias.mul_(0.02 * 1.35**number)
    return model


def test_a_choice_measures_fewer_and_takes_the_same(monkeypatch):
    model, data = deep_network(), [Batch((images(0),)), Batch((images(1),))]
    quick = chooser(model, data).choose()
    assert [step.candidates for step in quick.steps] == [16, 15, 14]
    assert quick.steps[0].measured == 16
    assert all(step.measured < 12 for step in quick.steps[1:])
    monkeypatch.setattr(removal_screen, "_FIRST_WAVE", 99)
    whole = chooser(model, data).choose()
    assert [step.measured for step in whole.steps] == [16, 15, 14]
    assert [step.removed for step in quick.steps] == [step.removed for step in whole.steps]
    assert [step.kl for step in quick.steps] == [step.kl for step in whole.steps]


class Notes:
    """A journal in memory."""

    def __init__(self, lines=()):
        self.lines = list(lines)

    def append(self, line):
        self.lines.append(json.loads(json.dumps(line)))

    def measured(self):
        return list(self.lines)


def test_a_resumed_choice_leaves_out_the_same():
    model, data, journal = deep_network(), [Batch((images(0),))], Notes()
    whole = chooser(model, data, journal=journal).choose()
    for kept in (2, 3):
        resumed = chooser(model, data, journal=Notes(journal.lines[:kept])).choose()
        assert [step.measured for step in resumed.steps] == [step.measured for step in whole.steps]
    # The journal of a version that did not note it: everything is measured.
    older = [{key: value for key, value in line.items() if key != "screen"} for line in journal.lines[:2]]
    assert chooser(model, data, journal=Notes(older)).choose().steps[1].measured == 15


@pytest.mark.parametrize("memory", [0, 20_000, 2**30])
def test_sweeps_that_keep_their_recordings_give_the_same_bits(memory):
    model = networks.randomised(networks.PreactNet(6, 5))
    data = [Batch((images(seed),)) for seed in range(3)]
    graph = analyze(model, data[0])
    paths = [block.path for block in graph.chain.removable]
    runs = []
    model.register_forward_hook(lambda *_: runs.append(1))
    with RemovalSweeps(graph, divergence, memory).open() as sweeps:
        for removed in ([], ["blocks.1"], ["blocks.1"], ["blocks.1", "blocks.3"]):
            remaining = [path for path in paths if path not in removed]
            runs.clear()
            kept = sweeps.measure(data, remaining, removed)
            count = len(runs)
            assert kept == removal_sweep(graph, data, remaining, removed=removed, damage=divergence)
    kept_runs = {0: 6, 20_000: None, 2**30: 3}[memory]  # of three mini-batches: the original's, and the prefixes
    assert kept_runs is None or count == kept_runs + 3 * len(remaining)


def test_what_is_removed_further_is_recorded_from_there_on():
    model = networks.randomised(networks.PreactNet(6, 5))
    data = [Batch((images(seed),)) for seed in range(2)]
    graph, runs = analyze(model, data[0]), []
    for number, block in enumerate(model.blocks):
        block.conv1.register_forward_hook(lambda *_, number=number: runs.append(number))
    with RemovalSweeps(graph, divergence, 2**30).open() as sweeps:
        for removed, expected in (([], None), (["blocks.3"], [4]), (["blocks.1", "blocks.3"], [2, 4, 4])):
            candidate = ["blocks.4"] if len(removed) < 2 else ["blocks.2"]
            runs.clear()
            found = sweeps.measure(data[:1], candidate, removed)
            if expected is not None:
                assert runs == expected
            assert found == removal_sweep(graph, data[:1], candidate, removed=removed, damage=divergence)
        # What is not removed any more is recorded whole.
        assert sweeps.measure(data[:1], ["blocks.2"], ["blocks.0"]) == removal_sweep(
            graph, data[:1], ["blocks.2"], removed=["blocks.0"], damage=divergence
        )
