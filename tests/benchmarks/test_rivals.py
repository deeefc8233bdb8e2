"""The rivals of the benchmarks select what their papers say, and everybody's recovery is tuned by one rule."""

import copy
import json
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from networks import CifarResNet
from shoal.batches import Batch
from shoal.measure import kl_per_sample
from shoal.plan import Remove
from shoal.recover import DistillConfig, TrainingBudget

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def rivals():
    """The package of the benchmarks, which is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import rivals

        yield rivals
    for name in [name for name in sys.modules if name.split(".")[0] == "rivals"]:
        del sys.modules[name]


def network(blocks=3, seed=0):
    torch.manual_seed(seed)
    return CifarResNet(blocks, 10, (4, 8, 16)).eval()


@pytest.fixture
def ground(rivals, tmp_path):
    torch.manual_seed(0)
    calibration = [Batch((torch.randn(16, 3, 8, 8),)) for _ in range(4)]
    return rivals.Ground(network(), calibration, tmp_path, gate_steps=2, adaptor_steps=2, longest=2, small=network(1))


@pytest.fixture
def steady(ground, monkeypatch):
    """Latency is the number of parameters: what is selected hangs on no clock."""

    def times(networks, seconds):
        models = {"original": ground.model} | networks
        whole = sum(parameter.numel() for parameter in ground.model.parameters())
        return {name: Time(sum(p.numel() for p in model.parameters()), whole) for name, model in models.items()}

    class Time:
        def __init__(self, value, whole):
            self.median_ms, self.ratio = float(value), SimpleNamespace(ratio=value / whole)

    monkeypatch.setattr(ground, "times", times)
    return ground


def removed(made):
    return [action.path for action in made.plan.actions if isinstance(action, Remove)]


def test_last_k_takes_blocks_from_the_end_and_leaves_those_that_change_the_shape(rivals, steady):
    assert removed(rivals.METHODS["last-k"](steady, 0.5)) == ["layer3.2", "layer3.1"]


def test_evenly_spaced_blocks(rivals):
    from rivals.baselines import evenly_spaced

    paths = [str(index) for index in range(9)]
    assert evenly_spaced(paths, 3) == ["1", "4", "7"]
    assert evenly_spaced(paths, 1) == ["4"]
    assert evenly_spaced(paths, 9) == paths
    for count in range(2, 9):
        gaps = [int(right) - int(left) for left, right in pairwise(evenly_spaced(paths, count))]
        assert max(gaps) - min(gaps) <= 1


def test_uniform_removal_is_spread_over_the_stages(rivals, steady):
    # Seven blocks keep the shape.
    assert removed(rivals.METHODS["uniform"](steady, 0.8)) == ["layer1.1", "layer3.1"]


def test_as_few_blocks_go_as_the_target_needs(rivals, steady):
    made = rivals.METHODS["last-k"](steady, 0.75)
    assert removed(made) == ["layer3.2"]
    assert steady.share(made.network, 1) <= 0.75


def test_a_target_out_of_reach_says_how_fast_the_method_gets(rivals, steady):
    with pytest.raises(rivals.Unreached) as unreached:
        rivals.METHODS["last-k"](steady, 0.05)
    assert 0.05 < unreached.value.fastest < 0.5


def test_groups_range_over_all_masks_with_n_of_m_blocks(rivals):
    from rivals.gates import Group

    masks = Group(("a", "b", "c", "d"), 2).masks()
    assert masks.shape == (6, 4)
    assert masks.sum(1).tolist() == [2.0] * 6
    assert len({tuple(mask) for mask in masks.tolist()}) == 6


def test_patterns_thin_the_fullest_group(rivals):
    from rivals.gates import thinned

    assert list(thinned([3, 2]))[:3] == [[3, 1], [2, 1], [1, 1]]
    assert list(thinned([3, 2]))[-1] == [0, 0]
    assert [sum(keep) for keep in thinned([3, 2])] == [4, 3, 2, 1, 0]


def test_large_stages_are_split_for_their_masks(rivals):
    from rivals.gates import split_evenly

    groups = list(split_evenly([(str(index), 1) for index in range(20)] + [("x", 2)]))
    assert [len(group) for group in groups] == [10, 10, 1]


def test_a_gate_with_one_mask_is_the_cut_network(rivals, ground):
    """Where the mask is certain, the gated student computes what the network without the blocks does."""
    from rivals.gates import Gate, Group

    from shoal.surgery import remove_blocks

    student, x = network(), torch.randn(8, 3, 8, 8)
    gate = Gate(Group(("layer1.1", "layer1.2"), 1))
    with torch.no_grad():
        gate.logits.copy_(torch.tensor([1.0, -1.0]))  # the first block stays
    for handle in gate.attach_(student, ground):
        assert handle is not None
    gate.draw_(8, 0.1)
    cut = remove_blocks(ground.model, ground.timed.take(2), ["layer1.2"]).eval()
    torch.testing.assert_close(student.eval()(x), cut(x))
    assert gate.removed() == ["layer1.2"]
    assert gate.confidence() == pytest.approx(1.0)


@pytest.mark.parametrize("idle", [1, 2])
def test_the_gradient_of_a_gate_keeps_the_block_that_does_something(rivals, ground, idle):
    """Of two blocks, one with a branch of zeros, the other one stays, whichever it is."""
    from rivals.gates import Gate, Group, _loss

    with torch.no_grad():
        ground.model.layer1[idle].bn2.weight.zero_()
        ground.model.layer1[idle].bn2.bias.zero_()
        ground.model.layer1[3 - idle].bn2.weight.mul_(4)
        ground.model.linear.weight.mul_(10)
        ground.model.train()
        for batch in 8 * ground.calibration:  # the running statistics are those of the data
            ground.model(*batch.args)
        ground.model.eval()
    gate, student = Gate(Group(("layer1.1", "layer1.2"), 1)), copy.deepcopy(ground.model)
    with torch.no_grad():
        gate.logits.zero_()
    gate.attach_(student, ground)
    for batch in 5 * ground.calibration:
        _loss(ground.model, student, [gate], batch, 1.0).backward()
    falls, rises = (0, 1) if idle == 1 else (1, 0)  # the first mask keeps the first block
    assert gate.logits.grad[falls] > 0 > gate.logits.grad[rises]


def test_tinyfusion_meets_the_target_with_its_pattern_and_the_weights_of_the_original(rivals, steady):
    made = rivals.METHODS["tinyfusion"](steady, 0.75)
    assert made.done["pattern"] == ["3:3", "2:2", "1:2"] or sum(map(int, "".join(made.done["pattern"])[::3])) < 7
    assert steady.share(made.network, 1) <= 0.75 * 1.01
    assert torch.equal(made.network.conv1.weight, steady.model.conv1.weight)


def test_the_small_network_stands_where_its_share_meets_the_point(rivals, steady):
    share = steady.share(steady.small, 1)
    made = rivals.METHODS["small"](steady, share + 0.01)
    assert made.small
    with pytest.raises(rivals.Unreached) as unreached:
        rivals.METHODS["small"](steady, share - 0.05)
    assert unreached.value.fastest == share


def test_the_small_network_is_kept_with_its_own_architecture(rivals, steady, tmp_path):
    from rivals.keeping import keep, reload

    keep(rivals.METHODS["small"](steady, 0.9), tmp_path / "cell")
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(reload(steady, tmp_path / "cell")(x), steady.small(x))


def test_the_best_value_of_short_trials_is_kept(rivals, tmp_path):
    from rivals.tuning import best_value

    calls = []

    def trial(value, budget):
        calls.append((value, budget))
        return abs(value - 4.0)

    path = tmp_path / "tuned" / "method.json"
    assert best_value(path, (0.5, 4.0, 64.0), TrainingBudget(steps=500), trial) == 4.0
    assert [value for value, _ in calls] == [0.5, 4.0, 64.0]
    assert {budget.steps for _, budget in calls} == {50}
    assert best_value(path, (0.5, 4.0, 64.0), TrainingBudget(steps=500), trial) == 4.0
    assert len(calls) == 3
    assert json.loads(path.read_text())["kl_left"] == {"0.5": 3.5, "4": 0.0, "64": 60.0}


class Parts:
    """A data set of random images, in the form the cells read."""

    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        self.batches = [
            (torch.randn(16, 3, 8, 8, generator=generator), torch.randint(0, 10, (16,), generator=generator))
        ]

    def test(self):
        return self.batches


@pytest.fixture
def setup(rivals):
    from rivals.recovered import RecoverySetup

    generator = torch.Generator().manual_seed(2)
    training = [torch.randn(16, 3, 8, 8, generator=generator) for _ in range(2)]
    validation = [torch.randn(16, 3, 8, 8, generator=generator)]
    return RecoverySetup(lambda epoch: training, validation, TrainingBudget(steps=3), settings=DistillConfig(looks=1))


@pytest.fixture
def run(rivals, steady, setup, monkeypatch, tmp_path):
    from rivals import cell
    from rivals.cell import Place, Sets
    from rivals.recovered import run_recovered

    monkeypatch.setattr(cell, "plain", lambda times: {name: time.median_ms for name, time in times.items()})
    sets = Sets(steady, {"data": Parts()})
    return lambda point, method: run_recovered(steady, sets, Place(tmp_path, point, method), setup)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["last-k", "practise", "small-distil"])
def test_a_cell_with_recovery_is_tuned_recovered_and_measured(run, method, tmp_path):
    cell = run(0.7, method)
    assert cell["reached"]
    assert cell["recovery"]["steps"] in (3, 0)
    assert set(cell["quality"]["data"]) >= {"top1", "agreement", "kl"}
    tuned = json.loads((tmp_path / "tuned" / f"{method}.json").read_text())
    assert len(tuned["kl_left"]) == (3 if method == "practise" else 4)


def test_the_same_cut_of_another_point_is_not_recovered_again(run, tmp_path):
    first = run(0.7, "small-distil")
    (tmp_path / "tuned" / "small-distil.json").write_text('{"value": 1000.0}')  # would change the result
    second = run(0.8, "small-distil")
    assert second["network"] == first["network"]
    assert second["point"] == 0.8


def test_the_small_network_as_it_is(run):
    cell = run(0.7, "small")
    assert cell["recovery"] == {"steps": 0}
    assert cell["before"] == cell["quality"]


def test_held_back_damage_of_the_original_is_nothing(ground):
    assert ground.damage(ground.model) == 0
    batch = ground.judge_on[0]
    other = network(seed=3)
    with torch.no_grad():
        expected = kl_per_sample(ground.model(*batch.args).log_softmax(-1), other(*batch.args)).mean()
    assert ground.damage(other) > 0
    assert float(expected) > 0
