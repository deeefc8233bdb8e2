import pytest
import torch
from given import data, dissected, least_squares, mlp, randn, spans, sums_of
from torch import nn

from shoal.plan import Replacement
from shoal.regress import fit
from shoal.replace import REPLACEMENTS, ReplacementSpec, build_replacement, fit_all, with_shortcut
from shoal.replace.modules import load_solution_

LINEAR = REPLACEMENTS["linear"]


def test_it_is_least_squares():
    x, y = randn(200, 5), randn(200, 3, seed=1)
    sums = sums_of(x, y)
    stand_in = Replacement(kind="linear", layout="channels_last", in_channels=5, out_channels=3)
    solution = LINEAR.solve(sums, fit(sums.train, sums.held_out, ridges=[0.0]), stand_in)
    weight, bias = least_squares(x, y)
    torch.testing.assert_close(solution.weight, weight, rtol=0, atol=1e-12)
    torch.testing.assert_close(solution.bias, bias, rtol=0, atol=1e-12)
    module = build_replacement(stand_in, x)
    load_solution_(module, solution)
    torch.testing.assert_close(module(x), x @ weight.T + bias, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_the_shortcut_form_is_the_same_function(layout):
    x, y = randn(300, 4), randn(300, 4, seed=1)
    sums = sums_of(x, y, torch.eye(4, dtype=torch.float64))
    plain = Replacement(kind="linear", layout=layout, in_channels=4, out_channels=4, tail="gelu")
    modules = []
    for stand_in in (plain, with_shortcut(plain)):
        module = build_replacement(stand_in, x)
        load_solution_(module, LINEAR.solve(sums, fit(sums.train, sums.held_out, target=sums.shortcut), stand_in))
        modules.append(module)
    given = randn(2, 4, 5, 5) if layout == "channels_first" else randn(2, 5, 4)
    torch.testing.assert_close(modules[0](given), modules[1](given), rtol=0, atol=1e-12)
    assert not torch.equal(modules[0][0].weight, modules[1].branch.weight)


@pytest.mark.parametrize(("outputs", "stride"), [(4, 1), (7, 1), (4, 2), (7, 3)])
def test_pointwise_convolutions_are_recovered_with_their_stride(outputs, stride):
    chain = lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(True), nn.Conv2d(4, outputs, 1, stride), nn.BatchNorm2d(outputs),
        nn.SiLU(True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(outputs, 2),
    )  # fmt: skip
    anatomy = dissected(chain, 3, 7, 7)
    [found] = fit_all(anatomy, data(8, 3, 7, 7), [ReplacementSpec(spans(anatomy)[1, 2], "linear")])
    assert found.module[0].stride == (stride, stride)
    x = anatomy.model[:2](randn(4, 3, 7, 7, seed=9))
    torch.testing.assert_close(found.module(x), anatomy.model[2:5](x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 3, 4)])
def test_linear_layers_without_an_activation_are_one(shape):
    anatomy = dissected(lambda: mlp(act=nn.Identity), *shape)
    [found] = fit_all(anatomy, data(20, *shape), [ReplacementSpec(spans(anatomy)[0, 4], "linear")])
    assert isinstance(found.module[0], nn.Linear)
    x = randn(6, *shape, seed=9)
    torch.testing.assert_close(found.module(x), anatomy.model(x), rtol=0, atol=1e-6)
    assert found.r2_held_out == pytest.approx(1, abs=1e-9)
