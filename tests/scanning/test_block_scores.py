"""The functions of the table of scores, one after the other, and scores of other distributions."""

import math
from functools import partial

import pytest
import torch

import networks
from shoal.errors import PluginError
from shoal.regress import Moments, fit
from shoal.scanning import ScanConfig, scan
from shoal.scanning.scores import SCORES, BlockStatistics, Score, all_scores
from shoal.scanning.scores.block_scores import (
    block_influence,
    largest_response,
    linear_cka,
    linear_map_r2,
    mean_response,
    relative_response,
    taylor,
)


def test_the_largest_of_all_units_in_all_mini_batches():
    seen = BlockStatistics()
    for values in ([[0.5, -3.0]], [[2.0, 1.0]]):
        seen.add_unit(torch.tensor(values))
        seen.add_branch(torch.ones(1, 2), torch.tensor(values))
    assert largest_response(seen) == 3.0


def test_zero_for_a_dead_block_and_none_without_data():
    seen = BlockStatistics()
    assert largest_response(seen) is None
    seen.add_unit(torch.zeros(2, 3))
    seen.add_branch(torch.ones(2, 3), torch.zeros(2, 3))
    assert largest_response(seen) == 0.0


def test_every_value_counts_the_same_in_uneven_mini_batches():
    branch = torch.randn(7, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    seen = BlockStatistics()
    for part in branch.split(3):
        seen.add_branch(torch.ones_like(part), part)
    assert mean_response(seen) == pytest.approx(float(branch.double().abs().mean()), rel=1e-6)
    assert mean_response(BlockStatistics()) is None


def test_the_mean_of_the_ratios_not_the_ratio_of_the_means():
    seen = BlockStatistics()
    seen.add_branch(torch.tensor([[3.0, 4.0], [100.0, 0.0]]), torch.tensor([[5.0, 0.0], [0.0, 10.0]]))
    assert relative_response(seen) == pytest.approx((1 + 0.1) / 2)


def test_it_does_not_depend_on_the_scale():
    stream, branch = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    one, other = BlockStatistics(), BlockStatistics()
    one.add_branch(stream, branch)
    other.add_branch(1000 * stream, 1000 * branch)
    assert relative_response(one) == pytest.approx(relative_response(other), rel=1e-5)


def test_samples_without_a_stream_are_left_out():
    seen = BlockStatistics()
    seen.add_branch(torch.zeros(1, 2), torch.ones(1, 2))
    assert relative_response(seen) is None
    seen.add_branch(torch.ones(1, 2), torch.ones(1, 2))
    assert relative_response(seen) == pytest.approx(1.0)


def influence(before, after):
    seen = BlockStatistics()
    seen.add_pair(before, after)
    return block_influence(seen)


def test_zero_exactly_for_a_block_that_changes_nothing():
    x = 7 * torch.randn(4, 50, 37, generator=torch.Generator().manual_seed(0))
    assert influence(x, x.clone()) == 0.0
    assert influence(x.relu() * (x > 1), x.relu() * (x > 1)) == 0.0


def test_half_a_turn_a_quarter_and_the_mean_over_positions():
    x, y = torch.tensor([[[1.0, 0.0], [2.0, 0.0]]]), torch.tensor([[[-3.0, 0.0], [0.0, 1.0]]])
    assert influence(x, y) == pytest.approx((2 + 1) / 2)
    torch.manual_seed(0)
    x, y = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    expected = 1 - torch.nn.functional.cosine_similarity(x, y, dim=-1).mean()
    assert influence(x, y) == pytest.approx(float(expected), abs=1e-6)


def test_a_position_that_becomes_zero_has_lost_its_direction():
    assert influence(torch.tensor([[[1.0, 2.0], [0.0, 0.0]]]), torch.zeros(1, 2, 2)) == pytest.approx(0.5)
    assert block_influence(BlockStatistics()) is None


def cka(x, y):
    seen = BlockStatistics()
    seen.add_rows(x.double(), y.double(), torch.arange(len(x)) % 2 == 1)
    return linear_cka(seen)


def rows(seed, n, width):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_the_formula_with_kernels():
    x, y = rows(0, 40, 5), rows(1, 40, 3)
    y += x[:, :3]
    centring = torch.eye(40, dtype=torch.float64) - 1 / 40
    kernel, other = centring @ x @ x.T @ centring, centring @ y @ y.T @ centring
    expected = (kernel * other).sum() / (kernel.norm() * other.norm())
    assert cka(x, y) == pytest.approx(float(expected), rel=1e-10)


def test_one_for_the_same_up_to_rotation_scale_and_offset():
    x = rows(0, 30, 6) + 10
    rotation, _ = torch.linalg.qr(rows(1, 6, 6))
    assert cka(x, x) == pytest.approx(1.0, abs=1e-12)
    assert cka(x, 0.1 * x @ rotation - 3) == pytest.approx(1.0, abs=1e-9)


def test_near_zero_for_independent_rows_and_none_for_constant_ones():
    assert cka(rows(0, 20000, 4), rows(1, 20000, 4)) < 0.01
    assert cka(rows(0, 9, 2), torch.zeros(9, 2)) is None
    assert linear_cka(BlockStatistics()) is None


def linearity(x, y):
    seen = BlockStatistics()
    seen.add_rows(x, y, torch.arange(len(x)) % 2 == 1)
    return linear_map_r2(seen)


def test_one_for_a_linear_block_of_any_widths():
    x = rows(0, 60, 5)
    assert linearity(x, x) == pytest.approx(1.0, abs=1e-12)
    assert linearity(x, x @ rows(1, 5, 3) + 2) == pytest.approx(1.0, abs=1e-9)


def test_it_is_judged_on_samples_that_were_not_fitted():
    x, noise = rows(0, 24, 10), rows(1, 24, 10)
    assert linearity(x, noise) < 0.2
    train, held_out = Moments(10, 10), Moments(10, 10)
    train.add(x[0::2], noise[0::2])
    held_out.add(x[1::2], noise[1::2])
    assert fit(train, train, target=torch.eye(10)).r2_fit > 0.7
    assert linearity(x, noise) == fit(train, held_out, target=torch.eye(10)).r2_held_out


def test_few_samples_fall_back_on_the_identity():
    x = rows(0, 8, 30)
    assert linearity(x, x + 0.01 * rows(1, 8, 30)) > 0.99


def test_none_for_a_single_sample():
    assert linearity(rows(0, 1, 3), rows(0, 1, 3)) is None
    assert linear_map_r2(BlockStatistics()) is None


def test_what_lowers_the_loss_now_would_raise_it_when_gone():
    seen = BlockStatistics()
    seen.add_gradient(torch.tensor([[1.0, 2.0]]), torch.tensor([[-3.0, 0.5]]))
    seen.add_gradient(torch.tensor([[4.0, 0.0]]), torch.tensor([[-1.0, 9.0]]))
    seen.product_count = 4
    assert taylor(seen) == -(-3 + 1 - 4) / 4


def test_plain_zero_for_a_dead_block_and_none_without_a_gradient():
    assert taylor(BlockStatistics()) is None
    seen = BlockStatistics(product_count=3)
    seen.add_gradient(torch.zeros(3, 2), torch.ones(3, 2))
    assert math.copysign(1, taylor(seen)) == 1
    assert taylor(seen) == 0


@pytest.fixture
def install(install_third_party):
    """A distribution 'third' with these values as scores."""
    return partial(install_third_party, "shoal.scores", SCORES)


def test_a_score_of_another_distribution_is_in_every_scan(install):
    install(spread=Score("arXiv:2601.00001", "keep", lambda statistics: statistics.largest * 2))
    net = networks.CifarResNet(1, widths=(4, 8, 16)).eval()
    record = scan(net, [(torch.randn(8, 3, 8, 8), torch.arange(8) % 10)], config=ScanConfig(layers=False))
    for block in record.blocks:
        assert block.scores["spread"] == 2 * block.scores["largest_response"]
    quality = next(quality for quality in record.scores if quality.name == "spread")
    assert (quality.source, quality.high_means, quality.blocks) == ("arXiv:2601.00001", "keep", 3)


def test_a_score_of_another_distribution_may_be_undefined(install):
    install(nothing=Score("mine", "remove", lambda statistics: None))
    assert "nothing" not in all_scores(BlockStatistics())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Score("mine", "keep", lambda statistics: 1 / 0), "failed: ZeroDivisionError: division by zero"),
        (Score("mine", "keep", lambda statistics: "high"), "failed: ValueError: could not convert"),
        (Score("mine", "keep", lambda statistics: math.nan), "returned NaN"),
        (Score("mine", "keep", None), "function=None"),
        (Score("mine", "high", lambda statistics: 1.0), "high_means='high'"),
        (lambda statistics: 1.0, "is of type function, expected a shoal.scanning.Score"),
    ],
)
def test_a_score_that_fails_names_its_distribution(install, value, message):
    install(mine=value)
    with pytest.raises(PluginError, match=rf"'mine' \(shoal.scores\) of the distribution 'third' .*{message}"):
        all_scores(BlockStatistics())
