"""Where a student would be after many steps, by the first few."""

import math

import pytest

from shoal.pipeline.learning_curve import extrapolated


def test_a_power_law_is_followed_exactly():
    curve = [(step, 3.0 * step**-0.4) for step in (12, 25, 50)]
    assert extrapolated(curve, 500) == pytest.approx(3.0 * 500**-0.4)
    assert extrapolated(curve[:2], 500) == pytest.approx(3.0 * 500**-0.4)


def test_the_last_two_looks_count():
    assert extrapolated([(1, 100.0), (10, 4.0), (40, 2.0)], 160) == pytest.approx(1.0)


def test_no_curve_falls_faster_than_one_over_the_steps():
    assert extrapolated([(10, 8.0), (20, 1.0)], 200) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        ([(25, 2.0)], 2.0),  # one point is no curve
        ([(12, 1.0), (25, 1.0)], 1.0),  # it does not fall
        ([(12, 1.0), (25, 3.0)], 3.0),  # it rises: no better than it is, nor worse
        ([(12, 1.0), (25, 0.0)], 0.0),
        ([(12, math.inf), (25, 2.0)], 2.0),
    ],
)
def test_what_is_no_falling_curve_stays_where_it_is(looks, expected):
    assert extrapolated(looks, 500) == expected


def test_what_diverged_stays_out():
    assert extrapolated([(12, 1.0), (25, math.inf)], 500) == math.inf


def test_the_end_is_not_before_the_last_look():
    assert extrapolated([(12, 4.0), (25, 2.0)], 20) == 2.0
