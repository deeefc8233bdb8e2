import pytest
import torch
from torch import nn

import networks
from shoal.batches import Batch
from shoal.blocks import trace
from shoal.errors import PlanError
from shoal.surgery import example_of, input_specs, signature_of


def signature(net, x):
    return signature_of(net, trace(net, x))


def test_it_names_every_tensor_with_dtype_and_shape():
    net = networks.NumberedNet().half().float()
    found = signature(net, torch.randn(2, 4))
    assert found.state["block1.fc1.weight"] == "float32[16,8]"
    assert list(found.state) == list(net.state_dict())
    assert found.chain == [f"block{i}:Block:identity:[8]->[8]" for i in (1, 2, 3)]
    assert signature(nn.BatchNorm1d(2), torch.randn(2, 2)).state["num_batches_tracked"] == "int64[]"


def test_it_says_nothing_of_weights_and_batch_size():
    one, other = networks.resnet20(), networks.resnet20()
    assert signature(one, torch.randn(2, 3, 16, 16)) == signature(other, torch.randn(5, 3, 16, 16))
    assert signature(one, torch.randn(2, 3, 16, 16)) != signature(one, torch.randn(2, 3, 8, 8))


def test_an_example_is_made_from_what_is_remembered():
    batch = Batch((torch.randn(7, 3, 8),), {"mask": torch.ones(7, 5, dtype=torch.int64)}, torch.ones(7))
    specs = input_specs(batch)
    assert [(one.shape, one.dtype, one.keyword) for one in specs] == [
        ([3, 8], "float32", None),
        ([5], "int64", "mask"),
    ]
    again = example_of(specs, batch=3)
    assert again.args[0].shape == (3, 3, 8)
    assert (again.kwargs["mask"].shape, again.kwargs["mask"].dtype) == ((3, 5), torch.int64)
    assert input_specs(again) == specs
    assert example_of(specs).size == 2


def test_an_input_of_another_kind_cannot_be_remembered():
    with pytest.raises(PlanError, match="an input of the network is a dict"):
        input_specs(Batch((torch.ones(1),), {"options": {}}))
