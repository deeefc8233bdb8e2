import pytest
import torch
from given import data, dissected, least_squares, mlp, randn, spans, sums_of
from torch import nn

from shoal.errors import UsageError
from shoal.plan import Replacement
from shoal.regress import fit
from shoal.replace import REPLACEMENTS, ReplacementSpec, build_replacement, fit_all, with_shortcut
from shoal.replace.modules import load_solution_
from shoal.replace.row_sampler import Window, extract_patches, gather_outputs, sample_grid


def chain(inputs, outputs, kernel=3, act=nn.ReLU, **settings):
    """One convolution of some kind behind a stem."""
    return lambda: nn.Sequential(
        nn.Conv2d(3, inputs, 3, padding=1),
        nn.ReLU(True),
        nn.Conv2d(inputs, outputs, kernel, **settings),
        nn.BatchNorm2d(outputs),
        act(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(outputs, 2),
    )


@pytest.mark.parametrize(
    ("inputs", "outputs", "settings"),
    [
        (4, 4, {"padding": 1}),
        (4, 7, {"padding": 1}),
        (4, 6, {"padding": 1, "stride": 2}),
        (4, 4, {"padding": 1, "stride": 3}),
        (4, 4, {"padding": 2, "dilation": 2}),
        (4, 6, {"padding": 2, "dilation": 2, "stride": 2}),
        (4, 4, {"padding": 1, "groups": 2}),
        (4, 8, {"padding": 1, "groups": 4}),
        (3, 3, {"padding": 2, "kernel": 5}),
    ],
)
def test_a_layer_that_is_a_convolution_is_recovered(inputs, outputs, settings):
    anatomy = dissected(chain(inputs, outputs, act=nn.Hardswish, **settings), 3, 9, 9)
    kind = f"conv{settings.get('kernel', 3)}"
    [found] = fit_all(anatomy, data(10, 3, 9, 9), [ReplacementSpec(spans(anatomy)[1, 2], kind)])
    own = found.module[0]
    assert (own.groups, own.stride[0], own.dilation[0]) == (1, settings.get("stride", 1), settings.get("dilation", 1))
    x = anatomy.model[:2](randn(4, 3, 9, 9, seed=9))
    torch.testing.assert_close(found.module(x), anatomy.model[2:5](x), rtol=0, atol=1e-6)
    assert (found.r2_fit, found.r2_held_out) == (pytest.approx(1, abs=1e-9), pytest.approx(1, abs=1e-9))


def test_what_a_grouped_convolution_does_not_look_at_gets_no_weight():
    anatomy = dissected(chain(4, 4, padding=1, groups=2), 3, 9, 9)
    [found] = fit_all(anatomy, data(10, 3, 9, 9), [ReplacementSpec(spans(anatomy)[1, 2], "conv3")])
    weight = found.module[0].weight.detach()
    assert weight[:2, 2:].abs().max() < 1e-6
    assert weight[2:, :2].abs().max() < 1e-6
    assert weight[:2, :2].abs().max() > 0.1


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_it_is_least_squares_over_neighbourhoods(stride, dilation):
    x, y = randn(8, 2, 9, 9), randn(8, 3, -(-9 // stride), -(-9 // stride), seed=1)
    grid = sample_grid(y.shape[2:], 999, torch.Generator().manual_seed(0))
    rows, outputs = extract_patches(x, grid, Window(3, stride, dilation)), gather_outputs(y, grid)
    sums = sums_of(rows, outputs)
    stand_in = Replacement(
        kind="conv", layout="channels_first", in_channels=2, out_channels=3, kernel=3, stride=stride, dilation=dilation
    )
    module = build_replacement(stand_in, x)
    load_solution_(module, REPLACEMENTS["conv3"].solve(sums, fit(sums.train, sums.held_out, ridges=[0.0]), stand_in))
    weight, bias = least_squares(rows, outputs)
    torch.testing.assert_close(gather_outputs(module(x), grid), rows @ weight.T + bias, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["conv3", "conv5"])
def test_the_shortcut_form_is_the_same_function(kind):
    anatomy = dissected(chain(4, 4, padding=1), 3, 9, 9)
    span = spans(anatomy)[1, 2]
    plain, beside = fit_all(
        anatomy, data(10, 3, 9, 9), [ReplacementSpec(span, kind), ReplacementSpec(span, kind, shortcut=True)]
    )
    assert beside.stand_in == with_shortcut(plain.stand_in)
    x = randn(4, 4, 9, 9, seed=9)
    torch.testing.assert_close(plain.module(x), beside.module(x), rtol=0, atol=1e-10)
    middle = REPLACEMENTS[kind].kernel // 2
    moved = plain.module[0].weight - beside.module.branch.weight
    torch.testing.assert_close(moved[:, :, middle, middle], torch.eye(4, dtype=torch.float64))
    assert plain.r2_fit == beside.r2_fit


def test_it_needs_neighbours():
    features = spans(dissected(mlp, 4))[1, 2]
    single = spans(dissected(chain(4, 4, padding=1), 3, 1, 1))[1, 2]
    for span in (features, single):
        assert not REPLACEMENTS["conv3"].supports(span)
        with pytest.raises(UsageError, match=r"'conv3' cannot replace .*\n.*needs a span of images"):
            ReplacementSpec(span, "conv3")
