import math

import numpy as np
import pytest
from scipy import stats

from shoal.errors import NonFiniteError
from shoal.scanning.scores.correlation import rank_correlation


def named(values):
    return {f"block{number}": float(value) for number, value in enumerate(values)}


def test_plus_one_means_the_order_of_the_true_damage():
    damage = named([0.1, 0.5, 0.2, 0.9, 0.3])
    turned = {path: -value for path, value in damage.items()}
    for score, high_means in ((damage, "keep"), (turned, "remove")):
        rho, interval = rank_correlation(score, damage, high_means)
        assert rho == pytest.approx(1.0)
        assert interval[1] == pytest.approx(1.0)
        assert 0 < interval[0] < 0.95
    rho, interval = rank_correlation(damage, damage, "remove")
    assert rho == pytest.approx(-1.0)
    assert -0.95 < interval[1] < 0


def test_it_is_spearman_with_ties():
    score, damage = [1, 2, 2, 3, 0, 5, 5], [0.3, 0.1, 0.4, 0.4, 0.0, 0.9, 0.2]
    rho, (low, high) = rank_correlation(named(score), named(damage), "keep")
    assert rho == pytest.approx(stats.spearmanr(score, damage).statistic)
    z = math.atanh(rho)
    half = 1.959963985 * math.sqrt((1 + rho**2 / 2) / 4)
    assert (low, high) == pytest.approx((math.tanh(z - half), math.tanh(z + half)))


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    normal, runs, n, held = 0.6, 600, 20, 0
    truth = 6 / math.pi * math.asin(normal / 2)  # Spearman's rho of a bivariate normal
    for _ in range(runs):
        x, y = rng.multivariate_normal([0, 0], [[1, normal], [normal, 1]], n).T
        _, (low, high) = rank_correlation(named(x), named(y), "keep")
        held += low <= truth <= high
    assert 0.925 < held / runs < 0.985


def test_only_blocks_with_both_are_ranked():
    score, damage = {"a": 1.0, "b": 2.0, "c": 0.0}, {"b": 5.0, "a": 1.0, "d": 9.0}
    assert rank_correlation(score, damage, "keep") == (pytest.approx(1.0), None)


@pytest.mark.parametrize(
    ("score", "damage"), [([1, 1, 1, 1], [1, 2, 3, 4]), ([1, 2, 3, 4], [0, 0, 0, 0]), ([], []), ([1], [2])]
)
def test_constant_or_too_few_have_no_order(score, damage):
    assert rank_correlation(named(score), named(damage), "keep") == (None, None)


def test_fewer_than_four_have_no_interval():
    assert rank_correlation(named([1, 2, 3]), named([1, 3, 2]), "keep")[1] is None
    assert rank_correlation(named([1, 2, 3, 4]), named([1, 3, 2, 4]), "keep")[1] is not None


def test_infinite_damage_has_a_rank_and_nan_has_none():
    assert rank_correlation(named([1, 2, 3]), named([0, 1, math.inf]), "keep")[0] == pytest.approx(1.0)
    with pytest.raises(NonFiniteError, match="NaN among the scores: 'block1'"):
        rank_correlation(named([1, math.nan, 3]), named([0, 1, 2]), "keep")
