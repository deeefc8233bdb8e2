import copy

import torch
import torch.nn.functional as F
from test_sites import IMAGES, Scaled, net
from torch import nn

import networks
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.epsilon.attach import attach_gates_, gates_of
from shoal.epsilon.decay import decayed_parameters, ending_parameters, largest_ending_weight

COLOURS = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def names(model, example):
    anatomy = analyze(model.eval(), Batch((example,)))
    reached = {id(parameter) for parameter in decayed_parameters(anatomy)}
    return {name for name, parameter in model.named_parameters() if id(parameter) in reached}


def test_kernels_decay_and_the_bias_of_the_last_convolution_with_them():
    found = names(networks.PreactNet(width=4, depth=1), IMAGES)
    assert found == {
        "stem.weight",
        "blocks.0.conv1.weight",
        "blocks.0.conv2.weight",
        "blocks.0.conv2.bias",
        "head.weight",
    }


def test_where_a_norm_ends_the_branch_its_scale_and_shift_decay_too():
    found = names(networks.CifarResNet(1, widths=(4, 8, 8)), COLOURS)
    assert {"layer1.0.bn2.weight", "layer1.0.bn2.bias"} <= found
    assert not {"layer1.0.bn1.weight", "bn1.weight"} & found


def test_a_scale_that_belongs_to_the_block_itself_decays():
    assert "1.0.gamma" in names(net(Scaled(), Scaled()), IMAGES)


def test_the_branch_is_as_alive_as_its_weakest_last_layer():
    model = networks.CifarResNet(1, widths=(4, 8, 8))
    branch = ("layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2", "layer1.0.bn2")
    assert len(ending_parameters(model, branch)) == 3
    nn.init.constant_(model.layer1[0].bn2.weight, 0.25)
    nn.init.constant_(model.layer1[0].conv2.weight, 3.0)
    assert largest_ending_weight(model.get_submodule, branch) == 0.25


def starve(reached, steps=55):
    """A post-activation network behind closed gates: its largest last response after decay on `reached` alone."""
    torch.manual_seed(0)
    model = networks.CifarResNet(1, widths=(4, 8, 8))
    anatomy = analyze(model.eval(), Batch((COLOURS,)))
    chosen = reached(anatomy)
    attach_gates_(anatomy, 1e6)
    others = [parameter for parameter in model.parameters() if parameter not in chosen]
    sgd = torch.optim.SGD([{"params": list(chosen), "weight_decay": 0.1}, {"params": others}], lr=0.1, momentum=0.9)
    model.train()
    for _ in range(steps):
        sgd.zero_grad()
        F.cross_entropy(model(COLOURS), torch.tensor([0, 1, 2, 3])).backward()
        sgd.step()
    return max(float(gate.largest) for gate in gates_of(model))


def test_a_branch_that_ends_in_batch_norm_dies_only_if_decay_reaches_scale_and_shift():
    def kernels(anatomy):
        return {parameter for parameter in anatomy.model.parameters() if parameter.dim() >= 2}

    assert starve(decayed_parameters) < 0.2
    assert starve(kernels) > 1, "the norm undoes what decay does to the kernel"
    assert starve(kernels, steps=200) < 1e-3, "until the kernel is small against the norm's own epsilon"


def test_the_model_is_left_as_it_was():
    model = networks.PreactNet(width=4, depth=2).eval()
    before = copy.deepcopy(model.state_dict())
    decayed_parameters(analyze(model, Batch((IMAGES,))))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
