import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shoal.batches import Batch
from shoal.blocks.sign_analysis import non_negative_values
from shoal.blocks.trace import trace_run


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def proved(function, x=None):
    run = trace_run(Function(function), Batch((torch.randn(2, 4, 6, 6) if x is None else x,)))
    return run.output.value in non_negative_values(run)


def part_ruled(x):
    out = x * 1
    out[:, :2].relu_()
    return out


def part_overwritten(x):
    out = F.relu(x)
    out[:, :2] = -1.0
    return out


def part_overwritten_by_view(x):
    out = F.relu(x)
    out[:, :2].sub_(1)
    return out


def part_ruled_twice(x):
    out = F.relu(x)
    out[:, :2].relu_()
    return out


@pytest.mark.parametrize(
    "function",
    [
        F.relu,
        lambda x: x.relu_(),
        F.relu6,
        torch.sigmoid,
        torch.abs,
        F.softplus,
        lambda x: F.softmax(x, 1),
        lambda x: F.hardtanh(x, 0.0, 6.0),
        lambda x: F.max_pool2d(F.relu(x), 2),
        lambda x: F.adaptive_avg_pool2d(F.relu(x), 1).flatten(1),
        lambda x: F.relu(x) + x.abs(),
        lambda x: F.relu(x) + 1,
        lambda x: 2 * F.relu(x),
        lambda x: F.pad(F.relu(x)[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 0),
        lambda x: torch.cat([F.relu(x), x.exp()]),
        lambda x: F.dropout(F.relu(x), 0.5, training=False),
        lambda x: F.interpolate(F.relu(x), scale_factor=2, mode="bilinear"),
        lambda x: F.relu(x).mean(dim=(2, 3)),
        part_ruled_twice,
    ],
)
def test_what_is_never_negative_is_proved(function):
    assert proved(function)
    with torch.no_grad():
        assert (function(torch.randn(2, 4, 6, 6)) >= 0).all()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x,
        F.gelu,
        F.silu,
        F.leaky_relu,
        F.hardtanh,
        lambda x: F.hardtanh(x, -1.0, 6.0),
        lambda x: F.relu(x) + x,
        lambda x: F.relu(x) - x.abs(),
        lambda x: F.relu(x) + -1,
        lambda x: -2 * F.relu(x),
        lambda x: torch.add(F.relu(x), F.relu(x), alpha=-1),
        lambda x: -F.relu(x),
        lambda x: F.pad(F.relu(x), (1, 1), value=-1.0),
        lambda x: F.interpolate(F.relu(x), scale_factor=2, mode="bicubic"),
        lambda x: F.interpolate(F.relu(x), None, 2, "bicubic"),
        lambda x: F.alpha_dropout(F.relu(x), 0.5, training=True),
        lambda x: F.softplus(x, threshold=-5.0),
        part_ruled,
        part_overwritten,
        part_overwritten_by_view,
    ],
)
def test_what_may_be_negative_is_not_proved(function):
    assert not proved(function)


def test_values_known_to_be_zero_count():
    run = trace_run(Function(lambda x: F.relu(x) + (x * 0)), Batch((torch.randn(2),)))
    zero = run.ops[1].outputs[0]
    assert run.output.value not in non_negative_values(run)
    assert run.output.value in non_negative_values(run, [zero])


STEPS = [
    F.relu,
    F.relu6,
    F.gelu,
    torch.tanh,
    torch.abs,
    torch.neg,
    torch.exp,
    lambda x: x + 1,
    lambda x: x + -1,
    lambda x: x * 2,
    lambda x: -1 * x,
    lambda x: 1 - x,
    lambda x: x + x.flip(0),
    lambda x: x * x.flip(0),
    lambda x: x - x.mean(),
    lambda x: x[:, 1:],
    lambda x: F.pad(x, (1, 0)),
    lambda x: F.pad(x, (1, 0), value=-2.0),
    lambda x: torch.cat([x, x.sum(0, keepdim=True)]),
    lambda x: F.layer_norm(x, x.shape[1:]),
    lambda x: torch.sub(x, x.abs()),
    lambda x: torch.minimum(x, x.flip(0)),
    lambda x: x.clone().relu_(),
    lambda x: x.clone().neg_(),
    part_ruled,
    part_overwritten,
    part_overwritten_by_view,
    lambda x: F.avg_pool1d(x, 1),
    lambda x: x.clone().copy_(-x),
    lambda x: torch.where(x > 0, x, -x),
    lambda x: x.amin(0, keepdim=True),
    lambda x: torch.addcmul(x, x, x, value=-3),
]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, len(STEPS) - 1), min_size=1, max_size=6), st.integers(0, 99))
def test_no_proof_of_sign_is_ever_contradicted(choice, seed):
    torch.manual_seed(seed)
    net = nn.Sequential(*(Function(STEPS[one]) for one in choice))
    run = trace_run(net, Batch((torch.randn(3, 8),)))
    signs = non_negative_values(run)
    found = []
    for part in net:
        part.register_forward_hook(lambda module, args, output: found.append((module, output.clone())))
    with torch.no_grad():
        net(3 * torch.randn(3, 8))
    for module, output in found:
        if run.calls_of(module)[0].output.value in signs:
            assert not bool((output < 0).any())
