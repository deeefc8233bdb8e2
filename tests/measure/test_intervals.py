import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from shoal.errors import DataError, NonFiniteError, UsageError
from shoal.measure.intervals import mcnemar, mean_interval, paired_drop, ratio_interval, wilson

Z = stats.norm.ppf(0.975)


@st.composite
def counts(draw):
    n = draw(st.integers(1, 5000))
    lost = draw(st.integers(0, n))
    return n, lost, draw(st.integers(0, n - lost))


@given(counts())
def test_wilson_is_scipys(pair):
    n, successes, _ = pair
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_everything_right_is_not_of_zero_width():
    low, high = wilson(20, 20)
    assert high == 1.0
    assert low == pytest.approx(20 / (20 + Z**2))
    assert wilson(0, 20) == pytest.approx((0.0, 1 - low))


def test_wilson_takes_sums_of_shares():
    low, high = wilson(7.5, 10)
    assert wilson(7, 10)[0] < low < 0.75 < high < wilson(8, 10)[1]


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (0, -3), (5, 4), (-1, 4), (1, 2.5), (math.nan, 3)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(UsageError):
        wilson(successes, n)


@pytest.mark.parametrize(
    ("n", "lost", "won", "expected"),
    [
        # Fagerland, Lydersen & Laake 2014 (BMC Med Res Methodol 14:116), data of Bentur 2009 and Cavo 2012.
        (21, 1, 7, (-0.517, -0.026)),
        (161, 6, 16, (-0.124, -0.005)),
    ],
)
def test_paired_drop_gives_published_figures(n, lost, won, expected):
    assert tuple(round(bound, 3) for bound in paired_drop(n, lost, won)) == expected


@pytest.mark.parametrize("n", [1, 2, 30, 360, 10_000, 10**7])
def test_paired_drop_without_discordant_pairs(n):
    half = Z**2 / (n + Z**2)
    assert paired_drop(n, 0, 0) == pytest.approx((-half, half), rel=1e-6)


@pytest.mark.parametrize("n", [1, 10, 1000])
def test_paired_drop_of_everything_lost_is_not_of_zero_width(n):
    assert paired_drop(n, n, 0) == pytest.approx(((n - Z**2) / (n + Z**2), 1.0), rel=1e-6)
    assert paired_drop(n, 0, n) == pytest.approx((-1.0, (Z**2 - n) / (n + Z**2)), rel=1e-6)


@given(counts())
def test_paired_drop_holds_its_estimate_and_mirrors(pair):
    n, lost, won = pair
    low, high = paired_drop(n, lost, won)
    assert -1 <= low <= (lost - won) / n <= high <= 1
    assert low < high
    assert paired_drop(n, won, lost) == pytest.approx((-high, -low), abs=1e-9)


def profile_score(n, lost, won, drop):
    """Tango's statistic with the nuisance parameter found by brute force over the likelihood."""
    share_won = np.linspace(max(0.0, -drop), (1 - drop) / 2, 400_001)[1:-1]
    share_lost = share_won + drop
    rest = np.maximum(1 - share_won - share_lost, 1e-300)
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = lost * np.log(share_lost) + won * np.log(share_won) + (n - lost - won) * np.log(rest)
    best = share_won[np.nanargmax(likelihood)]
    return (lost - won - n * drop) / math.sqrt(n * (2 * best + drop * (1 - drop)))


@pytest.mark.parametrize(("n", "lost", "won"), [(21, 1, 7), (50, 9, 3), (300, 4, 4), (40, 12, 1)])
def test_paired_drop_inverts_the_score_test(n, lost, won):
    low, high = paired_drop(n, lost, won)
    assert profile_score(n, lost, won, low) == pytest.approx(Z, abs=2e-3)
    assert profile_score(n, lost, won, high) == pytest.approx(-Z, abs=2e-3)


@pytest.mark.parametrize(("p_lost", "p_won"), [(0.05, 0.05), (0.10, 0.02), (0.30, 0.10), (0.02, 0.0), (0.15, 0.25)])
def test_paired_drop_covers(p_lost, p_won):
    n, covered, total = 40, 0.0, 0.0
    for lost in range(n + 1):
        for won in range(n + 1 - lost):
            probability = stats.multinomial.pmf([lost, won, n - lost - won], n, [p_lost, p_won, 1 - p_lost - p_won])
            if probability < 1e-7:
                continue
            low, high = paired_drop(n, lost, won)
            total += probability
            covered += probability * (low <= p_lost - p_won <= high)
    assert total == pytest.approx(1, abs=1e-3)
    assert 0.93 <= covered / total <= 0.999


@pytest.mark.parametrize(
    ("n", "lost", "won"),
    [(0, 0, 0), (-1, 0, 0), (10, 8, 3), (10, -1, 0), (10, 0, -1), (1.5, 0, 0), (10, 0.5, 0)],
)
def test_paired_drop_refuses_impossible_counts(n, lost, won):
    with pytest.raises(UsageError):
        paired_drop(n, lost, won)


def test_mcnemar_is_the_exact_test():
    assert mcnemar(6, 16) == pytest.approx(0.052479, abs=1e-6)  # Fagerland et al. 2014, data of Cavo 2012
    assert mcnemar(5, 0) == pytest.approx(2 / 2**5)
    assert mcnemar(3, 3) == 1.0
    assert mcnemar(0, 0) == 1.0
    with pytest.raises(UsageError):
        mcnemar(-1, 2)


@settings(max_examples=50)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30))
def test_mean_interval_is_scipys(values):
    low, high = mean_interval(values)
    if len(set(values)) > 1 and np.std(values) > 1e-3:
        expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-6)
    assert low <= np.mean(values) <= high


def test_mean_interval_at_the_edges():
    assert mean_interval([3.0]) == (-math.inf, math.inf)
    assert mean_interval(np.zeros((2, 3))) == (0.0, 0.0)
    with pytest.raises(DataError):
        mean_interval([])
    with pytest.raises(NonFiniteError, match="1 of 3"):
        mean_interval([1.0, math.nan, 2.0])


def test_ratio_interval_of_equal_groups_is_that_of_their_means():
    means = np.random.default_rng(0).normal(3, 1, 20)
    assert ratio_interval(7 * means, np.full(20, 7)) == pytest.approx(mean_interval(means))


def test_ratio_interval_covers():
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        counts = generator.integers(5, 40, 30)
        # Things in one group are alike: were each its own sample, the interval would be far too narrow.
        totals = counts * generator.normal(2.0, 1.0, 30)
        low, high = ratio_interval(totals, counts)
        hits += low <= 2.0 <= high
    assert 0.90 <= hits / 400 <= 0.98


def test_ratio_interval_at_the_edges():
    assert ratio_interval([3.0], [4]) == (-math.inf, math.inf)
    assert ratio_interval([3.0, 0.0], [4, 0]) == (-math.inf, math.inf)
    assert ratio_interval([2.0, 4.0], [1, 2]) == (2.0, 2.0)
    with pytest.raises(DataError, match="2 totals of 0 things"):
        ratio_interval([0.0, 0.0], [0, 0])
    with pytest.raises(DataError, match="1 totals"):
        ratio_interval([0.0], [1, 1])
    with pytest.raises(NonFiniteError):
        ratio_interval([math.nan, 1.0], [1, 1])
