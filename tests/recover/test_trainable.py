import copy

import pytest
import torch
from torch import nn

from shoal.batches import Batch
from shoal.plan import Replacement
from shoal.recover import make_plain_, make_trainable_
from shoal.recover.norm_modes import set_train_mode_
from shoal.recover.trainable import NormedStandIn
from shoal.replace import build_replacement

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
    assert isinstance(model[1], NormedStandIn)
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
    assert not isinstance(model[1], NormedStandIn)


def test_channels_that_never_vary_do_no_harm():
    stand_in = FORMS["conv"]
    model = network(stand_in)
    nn.init.zeros_(model[0].weight)
    x = given(stand_in)
    wanted = model(x)
    make_trainable_(model, {"1": stand_in}, [Batch((x,))])
    make_plain_(model, {"1": stand_in})
    assert torch.allclose(model(x), wanted, atol=1e-4)
