import copy

import pytest
import torch
from footing import batches, maker, network, plain
from torch import nn

import networks
from shoal.blocks import analyze
from shoal.pipeline import profiling as room
from shoal.pipeline.candidate_table import timed_modules
from shoal.pipeline.profiling import PlacedModule, latency_shares
from shoal.replace import build_segments


class Ticking:
    """A perf_counter that moves only when a module says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Ticking()
    monkeypatch.setattr(room.time, "perf_counter", made)
    return made


class Lasting(nn.Module):
    """Takes so long."""

    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds = [clock], seconds

    def forward(self, x):
        self.clock[0].now += self.seconds
        return x


def lasting_network(clock):
    """Three blocks of 1, 2 and 3 seconds, and a head of 4."""
    torch.manual_seed(0)
    model = networks.randomised(networks.PreactNet(4, 3))
    for number, block in enumerate(model.blocks):
        block.bn1 = nn.Sequential(block.bn1, Lasting(clock, number + 1.0))
    model.head = nn.Sequential(model.head, Lasting(clock, 4.0))
    return model


def lined(model, shape=(2, 1, 8, 8)):
    [data] = batches(*shape, count=1)
    anatomy = analyze(model, data)
    return anatomy, build_segments(anatomy), data


def test_each_step_has_its_share_of_the_whole(clock):
    model = lasting_network(clock)
    _, line, data = lined(model)
    steps, others = latency_shares(model, line, {}, data)
    assert steps == pytest.approx({"blocks.0": 0.1, "blocks.1": 0.2, "blocks.2": 0.3})
    assert others == {}


def test_others_are_timed_in_the_place_of_what_they_cover(clock):
    model = lasting_network(clock)
    _, line, data = lined(model)
    others = {
        "two": PlacedModule(Lasting(clock, 0.5), (4, 8, 8), ("blocks.0", "blocks.1")),
        "one": PlacedModule(Lasting(clock, 2.5), (4, 8, 8), ("blocks.1",)),
        "last": PlacedModule(Lasting(clock, 0.0), (4, 8, 8), ("blocks.2",)),
    }
    steps, found = latency_shares(model, line, others, data)
    assert found == pytest.approx({"two": 0.05, "one": 0.25, "last": 0.0})
    assert steps == pytest.approx({"blocks.0": 0.1, "blocks.1": 0.2, "blocks.2": 0.3})


def test_a_busy_round_does_not_move_the_median(clock):
    model = lasting_network(clock)
    _, line, data = lined(model)
    count = 0

    def busy(*_):
        nonlocal count
        count += 1
        if count == 3:
            clock.now += 1000.0

    model.blocks[0].register_forward_pre_hook(busy)
    steps, _ = latency_shares(model, line, {}, data)
    assert steps["blocks.2"] == pytest.approx(0.3)


def test_interruptions_in_every_run_leave_the_shares_as_they_are(clock):
    """As on a busy machine: each run loses the processor once, now in this part, now in that."""
    model = lasting_network(clock)
    _, line, data = lined(model)
    parts, runs = [*(block.bn1 for block in model.blocks), model.head], 0

    def interrupted(module, *_):
        nonlocal runs
        runs += module is parts[0]
        if module is parts[runs // 2 % len(parts)]:  # each round is a run of the network, and one with the other
            clock.now += 40.0

    for part in parts:
        part.register_forward_pre_hook(interrupted)
    others = {"last": PlacedModule(Lasting(clock, 0.5), (4, 8, 8), ("blocks.2",))}
    steps, found = latency_shares(model, line, others, data)
    assert steps == pytest.approx({"blocks.0": 0.1, "blocks.1": 0.2, "blocks.2": 0.3})
    assert found == pytest.approx({"last": 0.05})


def test_what_has_the_name_of_a_step_is_not_taken_for_it(clock):
    model = lasting_network(clock)
    _, line, data = lined(model)
    others = {"blocks.1": PlacedModule(Lasting(clock, 0.5), (4, 8, 8), ("blocks.1",))}
    steps, found = latency_shares(model, line, others, data)
    assert steps == pytest.approx({"blocks.0": 0.1, "blocks.1": 0.2, "blocks.2": 0.3})
    assert found == pytest.approx({"blocks.1": 0.05})


def test_what_covers_the_same_module_is_never_in_one_mosaic():
    others = {
        "a": PlacedModule(nn.Identity(), (1,), ("x", "y")),
        "b": PlacedModule(nn.Identity(), (1,), ("y", "z")),
        "c": PlacedModule(nn.Identity(), (1,), ("z",)),
        "d": PlacedModule(nn.Identity(), (1,), ("w",)),
    }
    groups = room.pack(others)
    assert sorted(key for group in groups for key in group) == ["a", "b", "c", "d"]
    assert len(groups) == 2
    for group in groups:
        covered = [path for key in group for path in others[key].paths]
        assert len(covered) == len(set(covered))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("make", [network, plain])
def test_real_networks_and_everything_that_may_stand_in_run_and_stay_as_they_were(make, channels_last, monkeypatch):
    monkeypatch.setattr(room, "_ROUNDS", 1)
    one = maker(make())
    model, line = one.graph.model, one.costs.segments
    before = copy.deepcopy(model.state_dict())
    others = timed_modules(one.graph, line, one.kinds, 3)
    steps, found = latency_shares(model, line, others, one.fit[0], channels_last=channels_last)
    assert set(steps) == set(line.paths)
    assert set(found) == set(others)
    assert all(share > 0 for share in steps.values())
    assert sum(steps.values()) < 1
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not any("forward" in vars(part) for part in model.modules())
    assert all(p.is_contiguous() for p in model.parameters())
