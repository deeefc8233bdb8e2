from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shoal.batches import Batch
from shoal.measure import cost
from shoal.surgery import fold


def relative(one, other, x):
    with torch.no_grad():
        expected, found = one(x), other(x)
    assert expected.shape == found.shape
    return float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-3))


@settings(max_examples=80, deadline=None)
@given(
    dims=st.integers(1, 3),
    widths=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 4)),
    kernel=st.integers(1, 3),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 2),
    biases=st.tuples(st.booleans(), st.booleans()),
    mode=st.sampled_from(["zeros", "circular"]),
    side=st.integers(5, 9),
    seed=st.integers(0, 99),
)
def test_a_pointwise_convolution_goes_into_the_one_before(
    dims, widths, kernel, strides, dilation, padding, biases, mode, side, seed
):
    torch.manual_seed(seed)
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    a, b, c = widths
    given_mode = mode if padding else "zeros"
    first = kind(a, b, kernel, strides[0], padding, dilation, bias=biases[0], padding_mode=given_mode)
    net = nn.Sequential(first, kind(b, c, 1, strides[1], bias=biases[1])).double().eval()
    x = torch.randn(2, a, *[side] * dims, dtype=torch.float64)
    result = fold(net, x)
    before, after = cost(net, Batch((x,))).macs, cost(result.model, Batch((x,))).macs
    if result.folded:
        assert result.folded == ["1 into 0"]
        assert after <= before
        assert relative(net, result.model, x) < 1e-10
        assert result.model[0].out_channels == c
        assert ("0.bias" in result.model.state_dict()) == any(biases)
    else:
        assert "times the multiplications of both" in result.refused["1"]
        merged = kind(a, c, kernel, [strides[0] * strides[1]] * dims, padding, dilation).double()
        assert cost(merged, Batch((x,))).macs > before


@settings(max_examples=30, deadline=None)
@given(
    widths=st.lists(st.integers(1, 8), min_size=3, max_size=6),
    tokens=st.integers(0, 2),
    bias=st.booleans(),
)
def test_linear_layers_in_a_row(widths, tokens, bias):
    torch.manual_seed(0)
    pairs = pairwise(widths)
    net = nn.Sequential(*(nn.Linear(a, b, bias=bias) for a, b in pairs)).double().eval()
    x = torch.randn(3, *[2] * tokens, widths[0], dtype=torch.float64)
    result = fold(net, x)
    assert relative(net, result.model, x) < 1e-10
    assert cost(result.model, Batch((x,))).macs <= cost(net, Batch((x,))).macs
    if len(set(widths)) == 1:
        assert len(result.folded) == len(widths) - 2


def test_more_than_two_with_strides_count_positions_rightly():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 6, 3, 2, 1), nn.Conv2d(6, 6, 1, 2), nn.Conv2d(6, 4, 1, 2)).double().eval()
    x = torch.randn(2, 2, 17, 17, dtype=torch.float64)
    result = fold(net, x)
    assert result.folded == ["1 into 0", "2 into 0"]
    assert result.model[0].stride == (8, 8)
    assert relative(net, result.model, x) < 1e-10


def test_a_bottleneck_stays_because_merging_it_costs_more():
    net = nn.Sequential(nn.Linear(16, 2), nn.Linear(2, 16)).eval()
    result = fold(net, torch.randn(2, 16))
    assert result.folded == []
    assert result.refused == {"1": "merged with '0' it would cost 4 times the multiplications of both"}


@pytest.mark.parametrize(
    ("layers", "shape", "said"),
    [
        ((nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 2, 1)), (2, 4, 5, 5), "works in groups"),
        ((nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1, groups=2)), (2, 4, 5, 5), "works in groups"),
        ((nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 3)), (2, 4, 5, 5), "more than one position"),
        ((nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1, padding=1)), (2, 4, 5, 5), "more than one position"),
        ((nn.ConvTranspose2d(4, 4, 1), nn.Conv2d(4, 2, 1)), (2, 4, 5, 5), "of another kind"),
        ((nn.Conv2d(4, 4, 1), nn.Linear(5, 2)), (2, 4, 5, 5), "of another kind"),
    ],
)
def test_what_is_no_pair_of_plain_maps_is_refused(layers, shape, said):
    result = fold(nn.Sequential(*layers).eval(), torch.randn(shape))
    assert result.folded == []
    assert said in result.refused["1"]
    assert result.deviation == 0


def test_an_activation_between_two_layers_keeps_them_apart():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    result = fold(net, torch.randn(2, 4))
    assert (result.folded, result.refused) == ([], {})


def test_what_is_read_twice_stays():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            h = self.a(x)
            return self.b(h) + self.c(h)

    assert fold(Two().eval(), torch.randn(2, 4)).folded == []


def test_a_batch_norm_between_goes_first_and_then_the_layers_merge():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(), nn.Conv2d(8, 3, 1))
    net = net.double().eval()
    net[1].running_mean.normal_()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    result = fold(net, x)
    assert result.folded == ["1 into 0", "3 into 0"]
    assert relative(net, result.model, x) < 1e-10


def test_products_that_leave_the_dtype_are_refused():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).eval()
    for layer in net:
        layer.weight.data.fill_(1e25)
    assert "exceed torch.float32" in fold(net, torch.zeros(1, 2)).refused["1"]
