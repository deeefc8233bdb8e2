import copy

import pytest
import torch
from test_sites import IMAGES, ReadTwice, Scaled, net
from torch import nn

import networks
import shoal
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.epsilon.attach import drop_gates_, epsilonize_, gates_of, remove_gates_
from shoal.errors import SurgeryError, UsageError
from shoal.surgery import certify, remove_blocks


def preact(depth=3):
    torch.manual_seed(0)
    return networks.randomised(networks.PreactNet(width=4, depth=depth)).eval()


MODELS = {
    "pre-activation": preact,
    "scaled by a parameter": lambda: net(Scaled(), Scaled()).eval(),
    "read twice": lambda: net(ReadTwice(), ReadTwice()).eval(),
}


@pytest.fixture(params=list(MODELS))
def model(request):
    torch.manual_seed(1)
    return MODELS[request.param]()


def blocks_of(model):
    return [block.path for block in shoal.trace(model, IMAGES).removable]


def test_under_a_huge_epsilon_nothing_is_added_and_over_a_tiny_one_everything(model):
    whole = model(IMAGES)
    cut = remove_blocks(model, Batch((IMAGES,)), blocks_of(model))(IMAGES)
    gates = epsilonize_(model, IMAGES, 1e6)
    assert [gate.block for gate in gates] == blocks_of(model)
    assert torch.equal(model(IMAGES), cut)
    assert not torch.equal(cut, whole)
    for gate in gates:
        gate.epsilon = 1e-9
    assert torch.equal(model(IMAGES), whole)


def test_the_state_dict_stays_as_it_was_and_loads(model):
    before = copy.deepcopy(model.state_dict())
    epsilonize_(model, IMAGES, 1.0)
    model(IMAGES)
    assert list(model.state_dict()) == list(before)
    assert not [name for name, _ in model.named_buffers() if name not in before]
    model.load_state_dict(before)


def test_a_copy_has_gates_of_its_own(model):
    epsilonize_(model, IMAGES, 1e6)
    twin = copy.deepcopy(model)
    for gate in gates_of(twin):
        gate.mode = "open"
    assert not torch.equal(twin(IMAGES), model(IMAGES))
    assert {id(gate) for gate in gates_of(twin)}.isdisjoint({id(gate) for gate in gates_of(model)})


def test_taken_off_again_nothing_is_left(model):
    whole, attributes = model(IMAGES), {path: set(vars(module)) for path, module in model.named_modules()}
    epsilonize_(model, IMAGES, 1e6)
    assert remove_gates_(model) is model
    assert torch.equal(model(IMAGES), whole)
    assert gates_of(model) == []
    assert {path: set(vars(module)) for path, module in model.named_modules()} == attributes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_shut_gate_can_be_certified_away(model):
    gates = epsilonize_(model, IMAGES, 1e-9)
    gates[1].mode = "shut"
    kept = {gates[1].block}
    drop_gates_(model, kept)
    cut = remove_blocks(model, Batch((IMAGES,)), sorted(kept))
    drop_gates_(cut, ())
    certificate = certify(model, cut, [IMAGES])
    assert (certificate.verdict, gates_of(cut)) == ("identical", [])


def test_live_gates_cannot_be_certified():
    model = preact()
    epsilonize_(model, IMAGES, 1e6)
    assert certify(model, copy.deepcopy(model), [IMAGES]).verdict != "identical"


def test_a_shut_gate_is_not_taken_off_by_mistake(model):
    epsilonize_(model, IMAGES, 1.0)[0].mode = "shut"
    with pytest.raises(SurgeryError, match="frozen shut"):
        remove_gates_(model)


def test_a_forward_that_raises_leaves_no_gate_watching():
    model = net(Scaled(), Scaled()).eval()
    epsilonize_(model, IMAGES, 1e6)
    expected = model(IMAGES)
    with pytest.raises(RuntimeError):
        model(IMAGES[:, :, :3])
    assert torch.equal(model(IMAGES), expected)
    assert torch.equal(IMAGES + IMAGES, 2 * IMAGES)


def test_both_units_of_a_transformer_block_are_gated():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    model = nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)).eval()
    gates = epsilonize_(model, torch.randn(2, 5, 4), 1.0)
    assert sorted({(gate.unit) for gate in gates}) == [0, 1]


def test_in_training_branches_behind_closed_gates_only_decay():
    model = preact().train()
    epsilonize_(model, IMAGES, 1e6)
    model(IMAGES).sum().backward()
    grads = [parameter.grad for parameter in model.blocks.parameters()]
    assert all(grad is not None and not torch.count_nonzero(grad) for grad in grads)
    assert torch.count_nonzero(model.stem.weight.grad)


def test_what_is_refused():
    model = preact()
    with pytest.raises(UsageError, match="expected a finite number from 0"):
        epsilonize_(model, IMAGES, -1.0)
    with pytest.raises(UsageError, match="expected a finite number from 0"):
        epsilonize_(model, IMAGES, float("nan"))
    with pytest.raises(SurgeryError, match="no block of this network can be gated"):
        epsilonize_(networks.PlainNet(), IMAGES, 1.0)
    epsilonize_(model, IMAGES, 1.0)
    with pytest.raises(UsageError, match="has gates already"):
        epsilonize_(model, IMAGES, 1.0)


def test_the_gated_network_is_still_traced_alike():
    model = preact()
    chain = analyze(model, Batch((IMAGES,))).chain
    epsilonize_(model, IMAGES, 1e-9)
    assert shoal.trace(model, IMAGES).paths == chain.paths


@pytest.mark.slow
def test_compiled_in_one_graph_it_is_the_same():
    model = preact()
    gates = epsilonize_(model, IMAGES, 1.0)
    expected = model(IMAGES)
    closed = [gate.closed for gate in gates]
    found = torch.compile(model, fullgraph=True)(IMAGES)
    assert torch.allclose(found, expected, atol=1e-6)
    assert [gate.closed for gate in gates] == closed
