import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import networks
from shoal.batches import Batch
from shoal.blocks.trace import trace_run
from shoal.blocks.zero_analysis import zero_values


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.zero = nn.Parameter(torch.zeros(4))
        self.one = nn.Parameter(torch.ones(4))
        self.empty = nn.Parameter(torch.zeros(0))

    def forward(self, x):
        return self.function(self, x)


def is_zero(net, x):
    run = trace_run(net.eval(), Batch((x,)))
    return run.output.value in zero_values(run, net)


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x: x * self.zero,
        lambda self, x: self.zero * x,
        lambda self, x: F.linear(x, self.zero.expand(3, 4)),
        lambda self, x: F.linear(x, torch.ones(3, 4) * 0 * x.sum()) if False else F.linear(x * self.zero, self.one),
        lambda self, x: F.layer_norm(x, (4,), self.zero, self.zero),
        lambda self, x: F.rms_norm(x, (4,), self.zero),
        lambda self, x: F.relu(x * self.zero),
        lambda self, x: F.gelu(x * self.zero) + self.zero,
        lambda self, x: (x * self.zero).view(-1)[1:].sum(),
        lambda self, x: F.pad(x * self.zero, (1, 1)),
        lambda self, x: torch.cat([x * self.zero, -(x * self.zero)]),
        lambda self, x: F.dropout(x * self.zero, 0.5, training=False),
        lambda self, x: torch.matmul(x, self.zero[:, None]),
        lambda self, x: torch.einsum("bi,i->b", x, self.zero),
        lambda self, x: x * 1 * self.zero - self.zero,
        lambda self, x: (x * self.zero).chunk(2, dim=1)[1],
    ],
)
def test_zero_is_carried_forward(function):
    assert is_zero(Function(function), torch.randn(2, 4))


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x: x * self.one,
        lambda self, x: x + self.zero,
        lambda self, x: F.linear(x, self.zero.expand(4, 4), self.one),
        lambda self, x: F.layer_norm(x, (4,), self.zero, self.one),
        lambda self, x: F.layer_norm(x, (4,), self.one, self.zero),
        lambda self, x: F.layer_norm(x, (4,), self.zero, self.zero, 0.0),
        lambda self, x: F.rms_norm(x, (4,), self.zero, 0.0),
        lambda self, x: (x * self.zero).exp(),
        lambda self, x: (x * self.zero).sigmoid(),
        lambda self, x: torch.cat([x * self.zero, x]),
        lambda self, x: F.pad(x * self.zero, (1, 1), value=3.0),
        lambda self, x: F.pad(x * self.zero, (1, 1), "constant", 3.0),
        lambda self, x: x * self.zero + 1,
        lambda self, x: torch.div(self.zero, x * self.zero),
        lambda self, x: torch.cat([x[:, :0], self.empty.expand(2, 0)], dim=1).sum() + x,
    ],
)
def test_what_is_not_zero_is_not_called_so(function):
    assert not is_zero(Function(function), torch.randn(2, 4))


def test_a_zero_that_is_overwritten_is_zero_no_more():
    def forward(self, x):
        out = x * self.zero
        out[0] = 1.0
        return out

    def through_a_view(self, x):
        out = x * self.zero
        out[:, :2].add_(1)
        return out

    def half_a_product(self, x):
        out = x * 1
        out[:, :2].mul_(self.zero[:2])
        return out

    assert not any(is_zero(Function(one), torch.randn(2, 4)) for one in (forward, through_a_view, half_a_product))


def zeroed(module, *names):
    with torch.no_grad():
        for name in names:
            module.get_parameter(name).zero_()
    return module


@pytest.mark.parametrize(
    ("net", "zero"),
    [
        (zeroed(nn.Conv2d(2, 2, 3, padding=1), "weight", "bias"), True),
        (zeroed(nn.Conv2d(2, 2, 3, padding=1, bias=False), "weight"), True),
        (zeroed(nn.Conv2d(2, 2, 3, padding=1), "weight"), False),
        (zeroed(nn.Conv2d(2, 2, 3, padding=1), "bias"), False),
        (zeroed(nn.ConvTranspose2d(2, 2, 2), "weight", "bias"), True),
        (zeroed(nn.BatchNorm2d(2), "weight", "bias"), True),
        (zeroed(networks.randomised(nn.BatchNorm2d(2)), "weight"), False),
        (zeroed(networks.randomised(nn.BatchNorm2d(2)), "bias"), False),
        (nn.BatchNorm2d(2, affine=False), False),
        (nn.Sequential(zeroed(nn.Conv2d(2, 2, 1, bias=False), "weight"), nn.BatchNorm2d(2)), False),
        (zeroed(nn.GroupNorm(1, 2), "weight", "bias"), True),
        (nn.Sequential(zeroed(nn.BatchNorm2d(2), "weight", "bias"), nn.ReLU(inplace=True), nn.MaxPool2d(2)), True),
    ],
)
def test_modules_whose_parameters_make_them_zero(net, zero):
    assert is_zero(net, torch.randn(1, 2, 4, 4)) == zero


def test_attention_with_a_zero_projection_is_zero():
    net = networks.PostNormNet(depth=1).eval()
    layer = net.encoder.layers[0]

    def attended():
        run = trace_run(net, Batch((torch.randn(1, 3, 8),)))
        value = next(one for one in run.calls if one.module is layer.self_attn).outputs[0]
        return value in zero_values(run, net)

    with torch.no_grad():
        assert not attended()
        layer.self_attn.out_proj.weight.zero_()
        layer.self_attn.out_proj.bias.fill_(1)
        assert not attended()
        layer.self_attn.out_proj.bias.zero_()
        assert attended()


def test_the_reason_names_the_tensor():
    net = zeroed(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), "1.weight", "1.bias")
    run = trace_run(net, Batch((torch.randn(1, 4),)))
    assert zero_values(run, net)[run.output.value] == "'1.weight' is zero and '1.bias' is zero"


PARTS = [
    lambda: nn.Linear(4, 4),
    lambda: zeroed(nn.Linear(4, 4), "weight"),
    lambda: zeroed(nn.Linear(4, 4), "weight", "bias"),
    lambda: zeroed(nn.Linear(4, 4), "bias"),
    lambda: zeroed(nn.LayerNorm(4), "weight", "bias"),
    lambda: zeroed(nn.BatchNorm1d(4), "weight", "bias"),
    nn.ReLU,
    nn.GELU,
    nn.Tanh,
    nn.Sigmoid,
    nn.SiLU,
    nn.Hardswish,
    nn.ELU,
    nn.Softplus,
    lambda: nn.Dropout(0.5),
    lambda: nn.AvgPool1d(1),
    lambda: Function(lambda self, x: x + x.flip(0)),
    lambda: Function(lambda self, x: x * x.mean()),
    lambda: Function(lambda self, x: x.transpose(0, 1).reshape(-1, 4)),
    lambda: Function(lambda self, x: x.clone().add_(self.one)),
    lambda: Function(lambda self, x: x - x[:1]),
    lambda: Function(lambda self, x: F.pad(x[:, 1:], (1, 0), value=1.0)),
    lambda: Function(lambda self, x: torch.where(x > 0, x, x + 1)),
    lambda: Function(lambda self, x: x.clamp(min=1)),
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(PARTS) - 1), min_size=1, max_size=6), st.integers(0, 99))
def test_no_proof_of_zero_is_ever_contradicted(choice, seed):
    torch.manual_seed(seed)
    net = nn.Sequential(*(PARTS[one]() for one in choice)).eval()
    run = trace_run(net, Batch((torch.randn(3, 4),)))
    proved = zero_values(run, net)
    found = []
    for number, part in enumerate(net):
        part.register_forward_hook(lambda module, args, output, number=number: found.append((number, output.clone())))
    with torch.no_grad():
        net(10 * torch.randn(3, 4))
    for number, output in found:
        call = run.calls_of(net[number])[0]
        if set(call.outputs) & set(proved):
            assert torch.count_nonzero(output) == 0
