import pytest
import torch
from test_trainer import network, settings

import shoal
from shoal.epsilon.attach import gates_of
from shoal.epsilon.finish import TrainRunInfo, finish
from shoal.epsilon.trainer import EpsilonTrainer
from shoal.sources import load_data
from shoal.training_record import TrainRecord


@pytest.fixture(scope="module")
def data():
    return load_data("digits", limit=128, batch_size=64)


@pytest.fixture(scope="module")
def run(data):
    one = EpsilonTrainer(network(), data, settings())
    one.train()
    return one


@pytest.fixture(scope="module")
def trained(run):
    return finish(run, TrainRunInfo(data="digits"), seconds=0.01)


def test_a_plain_network_comes_out_identical_by_construction(trained):
    record = trained.record
    assert record.lost
    assert record.settled.certificate.verdict == "identical"
    assert any("is zero" in premise for premise in record.settled.certificate.premises)
    assert gates_of(trained.model) == []
    assert not any(module._forward_hooks for module in trained.model.modules())
    assert {gate.mode for gate in gates_of(trained.whole)} == {"shut"}


def test_costs_are_those_of_the_networks(trained):
    plain = trained.record.settled.plain
    assert plain.cost.params == sum(parameter.numel() for parameter in trained.model.parameters())
    assert plain.blocks == 9 - len(trained.record.lost)
    assert plain.cost.macs < trained.record.settled.whole.cost.macs


def test_the_record_says_what_live_gates_would_do(trained):
    live = trained.record.settled.live
    assert live.batches == 2
    assert 0 <= live.batches_with_an_opening <= 2
    assert {one.path for one in trained.record.lost} == set(trained.plan.removed)
    for one in trained.record.lost:
        assert (one.opens_on_test > 0) == (one.largest_on_test > 1.6)
        assert 0 < one.weight_left < one.weight_before * 1.5


def test_weights_that_have_not_died_are_said(trained):
    assert any("before their last weights had died" in warning for warning in trained.record.warnings)


def test_saved_it_loads_bitwise_and_its_record_reads(trained, data, tmp_path):
    record = trained.save(tmp_path, data.example(2))
    names = {one.name for one in tmp_path.iterdir()}
    assert {"model.safetensors", "plan.json", "record.json", "report.html", "model.pt2"} <= names
    loaded = shoal.load(tmp_path, model=network(seed=5))
    x = next(iter(data.test()))[0]
    with torch.no_grad():
        assert torch.equal(loaded(x), trained.model(x))
    assert TrainRecord.model_validate_json((tmp_path / "record.json").read_text()) == record


def test_without_gates_there_is_nothing_to_lose(data):
    one = EpsilonTrainer(network(), data, settings(epsilon=0.0))
    one.train()
    found = finish(one, TrainRunInfo(), seconds=0.01)
    assert (found.record.lost, found.record.settled.live, found.record.gated) == ([], None, 0)
    assert found.record.settled.certificate.verdict == "identical"


def test_a_run_that_lost_nothing_says_what_to_change(data):
    one = EpsilonTrainer(network(), data, settings(epsilon=1e-9))
    one.train()
    found = finish(one, TrainRunInfo(), seconds=0.01)
    assert any("larger epsilon" in warning for warning in found.record.warnings)


def test_gates_that_would_open_are_counted(run):
    for block in run.prunable.removed.values():
        with torch.no_grad():
            block.conv2.weight.mul_(1e4)
    try:
        live = finish(run, TrainRunInfo(), seconds=0.01).record.settled.live
        assert live.batches_with_an_opening == live.batches
        assert live.comparison.kl > 0
    finally:
        for block in run.prunable.removed.values():
            with torch.no_grad():
                block.conv2.weight.div_(1e4)
