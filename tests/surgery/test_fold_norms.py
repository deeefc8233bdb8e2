"""Property tests in float64: a folded batch norm changes nothing but rounding."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from networks import randomised
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.surgery import fold
from shoal.surgery.fold_graph import FoldGraph
from shoal.surgery.fold_layers import find_norm_fold, scale_and_shift

CONVOLUTIONS = {
    (1, False): nn.Conv1d,
    (2, False): nn.Conv2d,
    (3, False): nn.Conv3d,
    (1, True): nn.ConvTranspose1d,
    (2, True): nn.ConvTranspose2d,
    (3, True): nn.ConvTranspose3d,
}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def relative(one, other, x):
    with torch.no_grad():
        expected, found = one(x), other(x)
    assert expected.shape == found.shape
    return float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-3))


def hard(model, seed=0):
    """Batch norms far from the identity, in float64."""
    generator = torch.Generator().manual_seed(seed)
    model = randomised(model.double(), seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.add_(3 * torch.randn(module.num_features, generator=generator))
            module.running_var.mul_(10 ** torch.randn(module.num_features, generator=generator))
            if module.affine:
                module.weight.data[0] = -2.0
    return model


shapes = {
    "dims": st.integers(1, 3),
    "transposed": st.booleans(),
    "groups": st.integers(1, 3),
    "per_group": st.tuples(st.integers(1, 3), st.integers(1, 3)),
    "kernel": st.integers(1, 3),
    "stride": st.integers(1, 2),
    "dilation": st.integers(1, 2),
    "bias": st.booleans(),
    "seed": st.integers(0, 99),
}


def convolution(dims, transposed, groups, per_group, kernel, stride, dilation, bias, padding):
    kind = CONVOLUTIONS[dims, transposed]
    wide, narrow = groups * per_group[0], groups * per_group[1]
    return kind(wide, narrow, kernel, stride=stride, padding=padding, groups=groups, dilation=dilation, bias=bias)


@settings(max_examples=60, deadline=None)
@given(padding=st.integers(0, 1), **shapes)
def test_behind_a_convolution(dims, padding, seed, **shape):
    torch.manual_seed(seed)
    layer = convolution(dims, padding=padding, **shape)
    net = hard(nn.Sequential(layer, NORMS[dims](layer.out_channels)), seed)
    x = torch.randn(2, layer.in_channels, *[7] * dims, dtype=torch.float64)
    result = fold(net, x)
    assert result.folded == ["1 into 0"]
    assert isinstance(result.model[1], nn.Identity)
    assert set(result.model.state_dict()) == {"0.weight", "0.bias"}
    assert relative(net, result.model, x) < 1e-10
    with torch.no_grad():
        assert result.deviation == float((net(x) - result.model(x)).abs().max())


@settings(max_examples=40, deadline=None)
@given(**shapes)
def test_before_a_convolution_without_padding(dims, transposed, seed, **shape):
    torch.manual_seed(seed)
    layer = convolution(dims, transposed, padding=0, **shape)
    net = hard(nn.Sequential(NORMS[dims](layer.in_channels), layer), seed)
    x = torch.randn(2, layer.in_channels, *[7] * dims, dtype=torch.float64)
    result = fold(net, x)
    if transposed:
        assert "has borders" in result.refused["0"]
        assert result.deviation == 0
    else:
        assert result.folded == ["0 into 1"]
        assert relative(net, result.model, x) < 1e-10


@settings(max_examples=30, deadline=None)
@given(**shapes)
def test_without_a_shift_borders_do_not_matter(dims, seed, **shape):
    torch.manual_seed(seed)
    layer = convolution(dims, padding=1, **shape)
    net = hard(nn.Sequential(NORMS[dims](layer.in_channels), layer), seed)
    net[0].bias.data.zero_()
    net[0].running_mean.zero_()
    x = torch.randn(2, layer.in_channels, *[7] * dims, dtype=torch.float64)
    result = fold(net, x)
    assert result.folded == ["0 into 1"]
    assert relative(net, result.model, x) < 1e-10


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_around_a_linear_layer(bias, affine):
    torch.manual_seed(0)
    x = torch.randn(5, 4, dtype=torch.float64)
    behind = nn.Sequential(nn.Linear(4, 3, bias=bias), nn.BatchNorm1d(3, affine=affine))
    before = nn.Sequential(nn.BatchNorm1d(4, affine=affine), nn.Linear(4, 3, bias=bias))
    for net, said in ((behind, "1 into 0"), (before, "0 into 1")):
        norm = next(one for one in net if isinstance(one, nn.BatchNorm1d))
        norm.running_mean.copy_(torch.randn(norm.num_features))
        norm.running_var.copy_(0.1 + torch.rand(norm.num_features))
        net = net.double().eval()
        result = fold(net, x)
        assert result.folded == [said]
        assert relative(net, result.model, x) < 1e-10


def test_a_batch_norm_between_two_layers_goes_into_the_first():
    net = hard(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3, padding=1)))
    x = torch.randn(2, 2, 7, 7, dtype=torch.float64)
    result = fold(net, x)
    assert result.folded == ["1 into 0"]
    assert relative(net, result.model, x) < 1e-10


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_padding_of_every_kind_behind_is_no_obstacle_and_before_is_one(mode):
    layer = nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode)
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    behind = hard(nn.Sequential(layer, nn.BatchNorm2d(3)))
    result = fold(behind, x)
    assert result.folded == ["1 into 0"]
    assert relative(behind, result.model, x) < 1e-10
    before = hard(nn.Sequential(nn.BatchNorm2d(2), layer))
    assert fold(before, x).folded == []
    said = "'1' behind it has borders" if mode == "zeros" else "no convolution or linear layer alone reads its output"
    assert said in fold(before, x).refused["0"]


class Odd(nn.Module):
    """Networks in which the obvious fold would be wrong."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(2, 2, 1)
        self.bn = nn.BatchNorm2d(2)
        self.last = nn.Conv2d(2, 2, 1)

    def forward(self, x):
        if self.kind == "overwritten":
            x = torch.sin(x)
            out = self.bn(x)
            x.relu_()
            return self.last(out) + x
        out = self.conv(x)
        if self.kind == "read elsewhere":
            return self.last(torch.relu(self.bn(out))) + out
        if self.kind == "returned":
            return self.last(torch.relu(self.bn(out))), out
        if self.kind == "in place":
            out.mul_(2).abs_()
            return torch.relu(self.bn(out))
        if self.kind == "weight shared":
            return torch.relu(self.bn(out)) + nn.functional.conv2d(x, self.conv.weight)
        raise AssertionError(self.kind)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("overwritten", "its input is overwritten before 'last' runs"),
        ("read elsewhere", "the output of 'conv' is read elsewhere too"),
        ("returned", "the output of 'conv' is read elsewhere too"),
        ("in place", "its input comes from abs in ''"),
        ("weight shared", r"its input comes from conv2d in 'conv' \(its weight is shared\)"),
    ],
)
def test_what_would_be_wrong_is_refused(kind, said):
    net = hard(Odd(kind))
    result = fold(net, torch.randn(2, 2, 4, 4, dtype=torch.float64))
    assert "bn" not in {step.path for step in result.steps}
    assert re.search(said, result.refused["bn"]), result.refused
    assert result.deviation == 0


def test_a_linear_layer_on_tokens_has_its_channels_elsewhere():
    net = hard(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(5)))
    assert "another axis" in fold(net, torch.randn(2, 5, 4, dtype=torch.float64)).refused["1"]


def test_numbers_that_leave_the_dtype_are_refused():
    wide = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)).eval()
    wide[0].weight.data.fill_(1e30)
    wide[1].running_var.fill_(0.0)
    wide[1].weight.data.fill_(1e30)
    assert "exceed torch.float32" in fold(wide, torch.zeros(1, 1, 2, 2)).refused["1"]


def test_the_dtype_stays():
    net = randomised(nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).bfloat16())
    result = fold(net, torch.randn(2, 2, 4, 4).bfloat16())
    assert {tensor.dtype for tensor in result.model.state_dict().values()} == {torch.bfloat16}
    assert 0 < result.deviation < 0.1


def test_structure_alone_decides():
    net = hard(nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, padding=1)))
    graph = FoldGraph(analyze(net, Batch((torch.randn(2, 2, 4, 4, dtype=torch.float64),))))
    found = find_norm_fold(graph, graph.norms[0])
    assert found.into.path == "1"
    assert not found.behind
    assert "borders" in found.assumption


def test_scale_and_shift_are_those_of_the_batch_norm():
    net = hard(nn.Sequential(nn.BatchNorm2d(3, eps=0.1)))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    scale, shift = scale_and_shift(FoldGraph(analyze(net, Batch((x,)))).norms[0])
    assert torch.allclose(x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1), net(x), rtol=1e-12)
