import pytest
import torch
from given import data, dissected, mlp, randn, spans, sums_of
from torch import nn

import networks
from shoal.errors import UsageError
from shoal.regress import fit
from shoal.replace import REPLACEMENTS, ReplacementSpec, fit_all
from shoal.replace.kinds.low_rank import truncate_rank

EYE = torch.eye(8, dtype=torch.float64)


class Halved(nn.Module):
    """x plus a map of rank two, normed."""

    def __init__(self, width, kernel):
        super().__init__()
        self.down = nn.Conv2d(width, 2, kernel, padding=kernel // 2)
        self.up, self.norm = nn.Conv2d(2, width, 1), nn.BatchNorm2d(width)

    def forward(self, x):
        return nn.functional.hardswish(x + self.norm(self.up(self.down(x))))


class HalvedTokens(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.down, self.up = nn.Linear(width, 2), nn.Linear(2, width)

    def forward(self, x):
        return nn.functional.gelu(x + self.up(self.down(x)), approximate="tanh")


@pytest.mark.parametrize(("kind", "width"), [("lowrank1/4", 8), ("lowrank3/8", 16)])
def test_a_residual_of_that_rank_is_met(kind, width):
    stem = lambda: nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.Sequential(Halved(width, REPLACEMENTS[kind].kernel))
    )
    anatomy = dissected(stem, 3, 7, 7)
    [found] = fit_all(anatomy, data(20, 3, 7, 7), [ReplacementSpec(spans(anatomy)[0, 1], kind)])
    assert (found.stand_in.rank, found.stand_in.tail) == (2, "hardswish")
    x = randn(4, width, 7, 7, seed=9)
    torch.testing.assert_close(found.module(x), anatomy.model[1](x), rtol=0, atol=1e-6)
    assert found.r2_held_out == pytest.approx(1, abs=1e-9)
    assert found.module.branch[0].out_channels == 2


@pytest.mark.parametrize("shape", [(4,), (5, 4)])
def test_a_residual_of_that_rank_is_met_on_features_and_tokens(shape):
    build = lambda: nn.Sequential(nn.Linear(4, 8), nn.Sequential(HalvedTokens(8), HalvedTokens(8)))
    anatomy = dissected(build, *shape)
    found = fit_all(
        anatomy, data(60, *shape), [ReplacementSpec(spans(anatomy)[at, at + 1], "lowrank1/4") for at in (0, 1)]
    )
    x = anatomy.model[0](randn(4, *shape, seed=9))  # in four of eight directions: the Gram matrix is singular
    for one, block in zip(found, anatomy.model[1], strict=True):
        assert one.stand_in.tail == "gelu_tanh"
        torch.testing.assert_close(one.module(x), block(x), rtol=0, atol=1e-5)
        x = block(x)


def test_a_plain_layer_gets_it_beside_a_shortcut_of_its_own():
    anatomy = dissected(lambda: mlp(8, act=nn.SiLU), 4)
    [found] = fit_all(anatomy, data(60, 4), [ReplacementSpec(spans(anatomy)[1, 2], "lowrank1/4")])
    x = randn(6, 8, seed=9)
    branch = found.module.branch
    assert [type(one) for one in branch] == [nn.Linear, nn.Linear]
    torch.testing.assert_close(found.module(x), nn.functional.silu(x + branch[1](branch[0](x))))


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_no_map_of_that_rank_keeps_more_of_the_outputs(rank):
    """The best approximation of W x is that of W C^(1/2) (Eckart and Young), C the covariance of x."""
    weight, root = randn(5, 7), randn(7, 7, seed=1)
    left, rows = truncate_rank(weight, root @ root.T, rank)
    assert (left.shape, rows.shape) == ((5, rank), (rank, 7))
    lost = float(((weight - left @ rows) @ root).square().sum())
    best = float(torch.linalg.svdvals(weight @ root)[rank:].square().sum())
    assert lost == pytest.approx(best, rel=1e-9, abs=1e-9)
    for seed in range(10 if rank < 5 else 0):
        other = (left + 0.1 * randn(5, rank, seed=seed)) @ (rows + 0.1 * randn(rank, 7, seed=seed + 50))
        assert float(((weight - other) @ root).square().sum()) > lost


def test_it_is_reduced_rank_regression_with_the_best_bias():
    x, y = randn(800, 8) @ randn(8, 8, seed=1) + 3, randn(800, 8, seed=2)
    y = y + x @ randn(8, 8, seed=3)
    sums = sums_of(x, y, EYE)
    whole = fit(sums.train, sums.held_out, target=EYE, ridges=[0.0])
    stand_in = REPLACEMENTS["lowrank1/4"].spec(spans(dissected(lambda: mlp(8), 4))[1, 2])
    solution = REPLACEMENTS["lowrank1/4"].solve(sums, whole, stand_in)
    assert torch.linalg.matrix_rank(solution.weight - EYE) == 2
    error = float(sums.train.error(solution.weight, solution.bias).sum())
    # What is lost beside the regression itself are the small singular values of the fitted outputs (Izenman 1975).
    covariance = sums.train.xx
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors @ (values.sqrt()[:, None] * vectors.T)
    lost = float(torch.linalg.svdvals((whole.weight - EYE) @ root)[2:].square().sum())
    assert error == pytest.approx(float(sums.train.error(whole.weight, whole.bias).sum()) + lost, rel=1e-9)
    for seed in range(5):
        assert float(sums.train.error(solution.weight, solution.bias + 0.1 * randn(8, seed=seed)).sum()) > error


def test_it_needs_a_shortcut_channels_and_neighbours():
    narrow = spans(dissected(lambda: networks.PreactNet(4, 1), 1, 6, 6))[0, 1]
    changing = spans(dissected(lambda: networks.CifarResNet(2, widths=(16, 32, 64)), 3, 8, 8))[1, 3]
    single = spans(dissected(lambda: networks.PreactNet(16, 1), 1, 1, 1))[0, 1]
    tokens = spans(dissected(lambda: mlp(16), 4))[1, 2]
    for span, kind in (
        (narrow, "lowrank1/4"),
        (changing, "lowrank1/4"),
        (single, "lowrank3/8"),
        (tokens, "lowrank3/8"),
    ):
        with pytest.raises(UsageError, match=f"'{kind}' cannot replace"):
            ReplacementSpec(span, kind)
    assert REPLACEMENTS["lowrank1/4"].supports(single)
    assert REPLACEMENTS["lowrank1/4"].supports(tokens)
