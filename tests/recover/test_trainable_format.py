import copy

import pytest
import torch
from lessons import images, student, teacher
from torch import nn

from shoal.batches import Batch
from shoal.errors import ModelRaisedError
from shoal.plan import Replacement
from shoal.recover.trainable import NormedStandIn
from shoal.recover.trainable_format import (
    downcast_,
    forward_in_format,
    from_trainable_,
    match_dtype,
    to_trainable_,
    upcast_,
)
from shoal.replace import build_replacement

CONV = Replacement(kind="conv", layout="channels_first", in_channels=4, out_channels=4, kernel=3, tail="relu")


class Tied(nn.Module):
    """One weight under two names, and layers of three precisions."""

    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.out.weight = self.into.weight
        self.half, self.whole, self.double = nn.Linear(4, 4).half(), nn.Linear(4, 4), nn.Linear(4, 4).double()
        self.into.to(torch.bfloat16)
        self.register_buffer("scale", torch.ones(2, dtype=torch.bfloat16))


def test_there_and_back_is_the_same_to_the_bit_and_tied_stays_tied():
    model = Tied()
    before = copy.deepcopy(model)
    dtypes = upcast_(model)
    assert set(dtypes) == {"into.weight", "out.weight", "half.weight", "half.bias", "scale"}
    assert model.into.weight is model.out.weight
    assert {one.dtype for one in model.parameters()} == {torch.float32, torch.float64}
    downcast_(model, dtypes)
    for (name, one), other in zip(model.state_dict().items(), before.state_dict().values(), strict=True):
        assert one.dtype == other.dtype, name
        assert torch.equal(one, other), name
    assert model.into.weight is model.out.weight


def test_a_network_that_learned_in_float32_learns_on_in_its_own_dtype():
    model = nn.Linear(4, 2).to(torch.bfloat16)
    dtypes = upcast_(model)
    model(torch.randn(3, 4)).sum().backward()
    model.zero_grad(set_to_none=True)
    downcast_(model, dtypes)
    model(torch.randn(3, 4, dtype=torch.bfloat16)).sum().backward()
    assert model.weight.grad.dtype == torch.bfloat16


def test_inputs_in_half_precision_come_as_float32_where_no_weight_is_in_half():
    half = Batch((images(2).bfloat16(), torch.tensor([1, 2])), {"mask": torch.ones(2, dtype=torch.float16)})
    given = match_dtype(teacher(), half)
    assert [one.dtype for one in given.tensors] == [torch.float32, torch.int64, torch.float32]
    assert match_dtype(teacher().bfloat16(), half) is half
    whole = Batch((images(2),))
    assert match_dtype(teacher(), whole) is whole
    assert forward_in_format(teacher(), Batch((images(2).bfloat16(),))).dtype == torch.float32
    with pytest.raises(ModelRaisedError):
        forward_in_format(teacher().bfloat16(), whole)


def test_stand_ins_in_half_precision_are_rewritten_in_float32_and_come_back():
    model = student()
    torch.manual_seed(0)
    model.blocks[1] = build_replacement(CONV, torch.zeros(1))
    model = model.bfloat16()
    before = copy.deepcopy(model)
    form = to_trainable_(model, {"blocks.1": CONV}, [Batch((images(16).bfloat16(),))])
    assert form.changed
    assert form.rewritten == ["blocks.1"]
    assert isinstance(model.blocks[1], NormedStandIn)
    assert {one.dtype for one in model.parameters()} == {torch.float32}
    from_trainable_(model, form)
    assert {name: one.dtype for name, one in model.state_dict().items()} == {
        name: one.dtype for name, one in before.state_dict().items()
    }
    x = images(8, 3).bfloat16()
    assert torch.allclose(model(x), before(x), atol=0.05)


def test_a_network_in_float32_is_left_alone():
    model = student()
    assert not to_trainable_(model, {}, []).changed
