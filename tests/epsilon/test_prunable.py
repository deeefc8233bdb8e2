import pytest
import torch

import networks
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.epsilon.attach import attach_gates_, gates_of
from shoal.epsilon.prunable import PrunableNetwork
from shoal.surgery import certify

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LOST = ["layer1.1", "layer2.0"]


def shrinking(seed=0):
    torch.manual_seed(seed)
    model = networks.randomised(networks.CifarResNet(2, widths=(4, 8, 8))).eval()
    anatomy = analyze(model, Batch((IMAGES,)))
    attach_gates_(anatomy, 1.0)
    return PrunableNetwork(anatomy)


def test_a_lost_block_goes_down_to_its_shortcut_and_is_kept_aside():
    one = shrinking()
    total, alive = sum(p.numel() for p in one.model.parameters()), len(one.alive)
    one.take_out(LOST)
    assert list(one.gone) == LOST
    assert len(one.alive) == alive - 2
    assert sum(p.numel() for p in one.model.parameters()) < total
    assert one.model(IMAGES).shape == (4, 10)
    assert {gate.block for gate in one.gates()} == set(one.alive)


def test_the_whole_network_with_frozen_gates_is_the_plain_one_by_construction():
    one = shrinking()
    one.take_out(LOST)
    whole, plain = one.whole(), one.plain()
    assert {gate.block for gate in gates_of(whole)} == set(LOST)
    assert gates_of(plain) == []
    assert certify(whole, plain, [IMAGES]).verdict == "identical"
    assert sum(p.numel() for p in whole.parameters()) > sum(p.numel() for p in plain.parameters())


def test_every_block_of_a_stage_may_go():
    one = shrinking()
    one.take_out(one.alive)
    assert one.alive == []
    assert certify(one.whole(), one.plain(), [IMAGES]).verdict == "identical"


def test_copies_share_nothing_with_the_network_in_training():
    one = shrinking()
    one.take_out(LOST)
    before = one.model(IMAGES)
    for network in (one.whole(), one.plain()):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
    assert torch.equal(one.model(IMAGES), before)
    assert any(gate.mode == "live" for gate in one.gates())


def test_what_was_kept_restores_a_fresh_network():
    one, other = shrinking(0), shrinking(1)
    one.take_out(LOST)
    other.restore({name: tensor.clone() for name, tensor in one.tensors().items()}, list(one.gone))
    assert torch.equal(other.model(IMAGES), one.model(IMAGES))
    assert torch.equal(other.whole()(IMAGES), one.whole()(IMAGES))
    assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


@pytest.mark.parametrize("taken", [True, False])
def test_modules_of_a_block_are_found_wherever_it_is(taken):
    one = shrinking()
    expected = one.model.layer1[1].conv2
    if taken:
        one.take_out(LOST)
    assert one.holder("layer1.1")("layer1.1.conv2") is expected
