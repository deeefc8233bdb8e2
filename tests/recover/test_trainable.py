import copy

import pytest
import torch
from torch import nn

from shoal.batches import Batch
from shoal.errors import ModelRaisedError
from shoal.plan import Replacement
from shoal.recover import make_plain_, make_trainable_
from shoal.recover.train_step import set_train_mode_
from shoal.recover.trainable import (
    NormedReplacement,
    downcast_,
    forward_in_format,
    from_trainable_,
    match_dtype,
    to_trainable_,
    upcast_,
)
from shoal.replace import build_replacement
from teaching import images, student, teacher

CONV = {"layout": "channels_first", "in_channels": 4, "out_channels": 4, "kernel": 3}
FORMS = {
    "conv": Replacement(kind="conv", tail="relu", **CONV),
    "conv with shortcut": Replacement(kind="conv", shortcut=True, tail="relu", **CONV),
    "dilated": Replacement(kind="conv", dilation=2, **CONV),
    "linear": Replacement(kind="linear", layout="channels_first", in_channels=4, out_channels=4, tail="silu"),
    "strided": Replacement(kind="conv", layout="channels_first", in_channels=4, out_channels=6, kernel=3, stride=2),
    "low rank": Replacement(kind="lowrank", rank=2, shortcut=True, **{**CONV, "kernel": 1}),
    "low rank of neighbours": Replacement(kind="lowrank", rank=2, shortcut=True, **CONV),
    "tokens": Replacement(kind="linear", layout="channels_last", in_channels=4, out_channels=4),
}


def network(stand_in, seed=0):
    torch.manual_seed(seed)
    module = build_replacement(stand_in, torch.zeros(1))
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    first = nn.Conv2d(3, 4, 1) if stand_in.layout == "channels_first" else nn.Linear(3, 4)
    return nn.Sequential(first, module).eval()


def given(stand_in, seed=1, count=8):
    shape = (count, 3, 6, 6) if stand_in.layout == "channels_first" else (count, 5, 3)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", FORMS)
def test_there_and_back_is_the_same_function_in_the_form_of_the_plan(name):
    stand_in = FORMS[name]
    model, x = network(stand_in), given(stand_in)
    wanted, names = model(x), list(model.state_dict())
    assert make_trainable_(model, {"1": stand_in}, [Batch((x[:4],)), Batch((x[4:],))]) == ["1"]
    assert isinstance(model[1], NormedReplacement)
    assert torch.allclose(model(x), wanted, atol=1e-5)
    make_plain_(model, {"1": stand_in})
    assert torch.allclose(model(x), wanted, atol=1e-5)
    assert list(model.state_dict()) == names
    assert type(model[1]) is type(build_replacement(stand_in, torch.zeros(1)))


@pytest.mark.parametrize("name", FORMS)
def test_what_was_learned_comes_back_exactly(name):
    stand_in = FORMS[name]
    model, x = network(stand_in), given(stand_in)
    make_trainable_(model, {"1": stand_in}, [Batch((x,))])
    set_train_mode_(model, 16, 16)
    sgd = torch.optim.SGD(model.parameters(), 0.05)
    for seed in range(5):
        model(given(stand_in, seed + 5)).square().mean().backward()
        sgd.step()
        sgd.zero_grad()
    model.eval()
    wanted = copy.deepcopy(model)(x)
    make_plain_(model, {"1": stand_in})
    assert torch.allclose(model(x), wanted, atol=2e-5)


def test_the_norm_is_set_from_the_data():
    stand_in = FORMS["conv"]
    model, x = network(stand_in), given(stand_in, count=64)
    make_trainable_(model, {"1": stand_in}, [Batch((x,))])
    before = model[1].norm.running_mean.clone()
    learned, still = copy.deepcopy(model), model(x)
    set_train_mode_(learned, 64, 16)
    assert torch.allclose(learned(x), still, atol=1e-2)  # the mini-batch has the very statistics
    assert float(before.abs().max()) > 0
    kept = [one for one in model.modules() if one._forward_pre_hooks]
    assert kept == []


def test_kinds_with_nothing_to_norm_are_left_alone():
    stand_in = Replacement(kind="scale", layout="channels_first", in_channels=4, out_channels=4)
    model = network(stand_in)
    assert make_trainable_(model, {"1": stand_in}, []) == []
    make_plain_(model, {"1": stand_in})
    assert not isinstance(model[1], NormedReplacement)


def test_channels_that_never_vary_do_no_harm():
    stand_in = FORMS["conv"]
    model = network(stand_in)
    nn.init.zeros_(model[0].weight)
    x = given(stand_in)
    wanted = model(x)
    make_trainable_(model, {"1": stand_in}, [Batch((x,))])
    make_plain_(model, {"1": stand_in})
    assert torch.allclose(model(x), wanted, atol=1e-4)


REPLACEMENT = Replacement(kind="conv", layout="channels_first", in_channels=4, out_channels=4, kernel=3, tail="relu")


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
    model.blocks[1] = build_replacement(REPLACEMENT, torch.zeros(1))
    model = model.bfloat16()
    before = copy.deepcopy(model)
    form = to_trainable_(model, {"blocks.1": REPLACEMENT}, [Batch((images(16).bfloat16(),))])
    assert form.changed
    assert form.rewritten == ["blocks.1"]
    assert isinstance(model.blocks[1], NormedReplacement)
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


def normed_network():
    """Batch norms whose statistics are not those of what they see, as after a refit."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4))
    with torch.no_grad():
        for norm in (model[1], model[4]):
            norm.weight.uniform_(-2, 2)
            norm.bias.uniform_(-1, 1)
            norm.running_mean.uniform_(-3, 3)
            norm.running_var.uniform_(0.1, 9)
    return model.eval()


def test_by_the_statistics_of_a_mini_batch_a_student_computes_what_it_did_in_eval_mode():
    model, x = normed_network(), torch.randn(32, 3, 8, 8)
    expected = model(x)
    make_trainable_(model, {}, [Batch((x[:12],)), Batch((x[12:],))])
    assert torch.allclose(model(x), expected, atol=1e-4)
    assert torch.allclose(model.train()(x), expected, atol=1e-2)
    assert not torch.allclose(normed_network().train()(x), expected, atol=1)


def test_a_norm_that_shares_its_weights_or_has_none_keeps_its_statistics():
    model, x = normed_network(), torch.randn(8, 3, 8, 8)
    plain = nn.BatchNorm2d(4, affine=False)
    twin = nn.BatchNorm2d(4)
    twin.weight = model[4].weight
    model = model.extend([twin, plain]).eval()
    expected, before = model(x), [model[place].running_mean.clone() for place in (4, 5, 6)]
    make_trainable_(model, {}, [Batch((x,))])
    assert torch.allclose(model(x), expected, atol=1e-4)
    assert all(torch.equal(model[place].running_mean, mean) for place, mean in zip((4, 5, 6), before, strict=True))


def test_norms_that_see_nan_keep_their_statistics():
    model, x = normed_network(), torch.full((4, 3, 8, 8), float("nan"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    make_trainable_(model, {}, [Batch((x,))])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
