import pytest
import torch
from given import data, dissected, randn, spans, sums_of
from torch import nn

from shoal.errors import UsageError
from shoal.plan import Replacement
from shoal.regress import RIDGES, fit
from shoal.replace import REPLACEMENTS, ReplacementSpec, build_replacement, fit_all, with_shortcut
from shoal.replace.modules import load_solution_

SCALE = REPLACEMENTS["scale"]
EYE = torch.eye(4, dtype=torch.float64)


def described(layout="channels_last", channels=4):
    return Replacement(kind="scale", layout=layout, in_channels=channels, out_channels=channels)


def solved(x, y, stand_in=None):
    sums = sums_of(x, y, EYE)
    return SCALE.solve(sums, fit(sums.train, sums.held_out, target=EYE), stand_in or described())


@pytest.mark.parametrize("rows", [12, 400])
def test_each_channel_is_a_ridge_regression_of_its_own_towards_one(rows):
    x = randn(rows, 4) + 2
    y = x * torch.tensor([2.0, -1.0, 0.5, 0.0]) + randn(rows, 4, seed=1) + torch.arange(4)
    solution, cut = solved(x, y), rows * 4 // 5
    penalty = solution.ridge * float((x[:cut] - x[:cut].mean(0)).square().sum(dim=0).mean())
    for channel in range(4):
        given, wanted = x[:cut, channel], y[:cut, channel]
        design = torch.ones(cut + 1, 2, dtype=torch.float64)
        design[:-1, 0], design[-1, 0], design[-1, 1] = given, penalty**0.5, 0
        goal = torch.cat([wanted - given, torch.zeros(1)])[:, None]
        number, offset = torch.linalg.lstsq(design, goal).solution[:, 0]
        assert float(solution.state["weight"][channel]) == pytest.approx(1 + float(number), abs=1e-9)
        assert float(solution.state["bias"][channel]) == pytest.approx(float(offset), abs=1e-9)
    torch.testing.assert_close(solution.weight, torch.diag(solution.state["weight"]))


def test_the_ridge_is_the_best_on_the_held_out_rows():
    x = randn(30, 4)
    sums = sums_of(x, x * 0.5 + 2 * randn(30, 4, seed=1), EYE)
    solution = SCALE.solve(sums, fit(sums.train, sums.held_out, target=EYE), described())
    errors = {}
    for ridge in RIDGES:
        added = ridge * sums.train.xx.diagonal().mean()
        number = (sums.train.xy.diagonal() + added) / (sums.train.xx.diagonal() + added)
        offset = sums.train.mean_y - number * sums.train.mean_x
        errors[ridge] = float(sums.held_out.error(torch.diag(number), offset).sum())
    assert solution.ridge == min(errors, key=errors.get)
    assert 0 < solution.ridge < max(RIDGES)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_the_module_and_its_shortcut_form_compute_it(layout):
    x = randn(400, 4)
    y = x * torch.tensor([2.0, -1.0, 0.5, 0.0]) + torch.arange(4)
    given = randn(2, 4, 3, 5) if layout == "channels_first" else randn(2, 5, 4)
    channel = (-1, 1, 1) if layout == "channels_first" else (-1,)
    expected = given * torch.tensor([2.0, -1.0, 0.5, 0.0]).double().reshape(channel)
    expected = expected + torch.arange(4).double().reshape(channel)
    for stand_in in (described(layout), with_shortcut(described(layout))):
        module = build_replacement(stand_in, x)
        load_solution_(module, solved(x, y, stand_in))
        torch.testing.assert_close(module(given), expected, rtol=0, atol=1e-6)


def test_a_layer_that_only_rescales_is_recovered():
    chain = lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(True), nn.Conv2d(4, 4, 1, groups=4), nn.GELU(), nn.MaxPool2d(6),
        nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip
    anatomy = dissected(chain, 3, 8, 8)
    [found] = fit_all(anatomy, data(20, 3, 8, 8), [ReplacementSpec(spans(anatomy)[1, 2], "scale")])
    torch.testing.assert_close(found.module[0].weight, anatomy.model[2].weight.flatten(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.module[0].bias, anatomy.model[2].bias, rtol=0, atol=1e-6)
    x = anatomy.model[:2](randn(4, 3, 8, 8, seed=9))
    torch.testing.assert_close(found.module(x), anatomy.model[2:4](x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_a_constant_channel_keeps_its_shortcut(seed):
    """The rounding of its mean leaves a spread that says nothing."""
    x = randn(300, 4, seed=seed)
    y = 3 * x
    x[:, 1], y[:, 1] = 0.1 + 0.3 * torch.rand(1, generator=torch.Generator().manual_seed(seed)), x[:, 2]
    number = solved(x, y).state["weight"]
    torch.testing.assert_close(number, torch.tensor([3.0, 1.0, 3.0, 3.0], dtype=torch.float64), rtol=0, atol=1e-6)


def test_few_rows_stay_near_the_shortcut():
    x = randn(5, 4)
    number = solved(x, x + 3 * randn(5, 4, seed=1)).state["weight"]
    assert (number - 1).abs().max() < 0.5


def test_it_needs_the_same_shape():
    chain = lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2))
    span = spans(dissected(chain, 3, 8, 8))[0, 1]
    with pytest.raises(UsageError, match=r"'scale' cannot replace 0\.\.0"):
        ReplacementSpec(span, "scale")
