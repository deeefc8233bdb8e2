import math

import pytest

from shoal.report import numbers


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0.9875, "98.8 %"),
        (0.0, "0.0 %"),
        (1.0, "100.0 %"),
        (0.9997, "99.97 %"),
        (0.0002, "0.02 %"),
        (None, "–"),
        (math.nan, "–"),
    ],
)
def test_percent(given: float | None, expected: str) -> None:
    assert numbers.percent(given) == expected


def test_percent_interval() -> None:
    assert numbers.percent_interval((0.972, 0.991)) == "97.2 – 99.1 %"
    assert numbers.percent_interval((0.97, math.inf)) == "–"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0.0025, "lost 0.25 points"),
        (-0.01, "gained 1.00 points"),
        (0.0, "unchanged"),
        (1e-7, "lost less than 0.01 points"),
        (None, "–"),
    ],
)
def test_points_say_their_sign_in_words(given: float | None, expected: str) -> None:
    assert numbers.points(given) == expected


def test_an_interval_of_points_names_both_ends() -> None:
    assert numbers.points_interval((-0.0088, 0.014)) == "0.88 gained to 1.40 lost"
    assert numbers.points_interval((0.0, 0.014)) == "0 to 1.40 lost"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (942, "942"),
        (0, "0"),
        (1_230_000, "1.23 M"),
        (125_800_000, "125.8 M"),
        (999_960, "1.00 M"),
        (12_345, "12.3 k"),
        (4_100_000_000, "4.10 G"),
    ],
)
def test_amounts_have_si_prefixes(given: int, expected: str) -> None:
    assert numbers.amount(given) == expected


def test_storage_is_decimal() -> None:
    assert numbers.storage(3_412_072) == "3.41 MB"
    assert numbers.storage(512) == "512 B"


@pytest.mark.parametrize(
    ("given", "expected"),
    [(4.2134, "4.21 ms"), (0.01234, "0.0123 ms"), (1234.5, "1,234 ms"), (212.4, "212 ms"), (math.nan, "–")],
)
def test_milliseconds_have_three_digits(given: float, expected: str) -> None:
    assert numbers.milliseconds(given) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [(0.0, "0"), (3.2e-9, "3.20 × 10⁻⁹"), (-0.5, "−0.500"), (9.999, "10.0"), (math.inf, "–"), (None, "–")],
)
def test_significant(given: float | None, expected: str) -> None:
    assert numbers.significant(given) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [(0.0, "0"), (0.0025, "0.25"), (-0.01, "−1.00"), (None, "–"), (math.nan, "–")],
)
def test_points_in_a_column_are_bare(given: float | None, expected: str) -> None:
    assert numbers.lost(given) == expected


def test_intervals_in_a_column_are_bare() -> None:
    assert numbers.lost_interval((-0.0088, 0.014)) == "−0.88 to 1.40"
    assert numbers.lost_interval((-math.inf, 0.014)) == numbers.lost_interval(None) == "–"


def test_correlations() -> None:
    assert [numbers.signed(rho) for rho in (0.968, -0.17, None, math.nan)] == ["0.97", "−0.17", "–", "–"]
    assert numbers.signed_interval((-0.1, 0.62)) == "−0.10 to 0.62"
    assert numbers.signed_interval(None) == "–"


def test_a_minus_sign_is_not_mistaken_for_the_dash_of_an_interval() -> None:
    assert numbers.significant_interval((-0.01, 0.02)) == "−0.010 to 0.020"
    assert numbers.significant_interval((0.01, 0.02)) == "0.010 – 0.020"


@pytest.mark.parametrize(
    ("given", "expected"),
    [(0.2, "0.200 s"), (48.2, "48 s"), (192, "3 min 12 s"), (7500, "2 h 5 min"), (59.7, "1 min 0 s")],
)
def test_duration(given: float, expected: str) -> None:
    assert numbers.duration(given) == expected


def test_probability() -> None:
    assert [numbers.probability(p) for p in (0.0001, 0.0312, 0.62, 1.0, None)] == [
        "< 0.001",
        "0.031",
        "0.62",
        "1.00",
        "–",
    ]


def test_less() -> None:
    assert numbers.less(100, 48) == "52.0 % less"
    assert numbers.less(100, 150) == "50.0 % more"
    assert numbers.less(7, 7) == "unchanged"
    assert numbers.less(0, 7) == "–"


def test_ticks_are_short() -> None:
    assert [numbers.tick(value) for value in (0.04, -1.0, 0.0, 200.0)] == ["0.04", "−1", "0", "200"]
    assert [numbers.tick(value) for value in (2e-5, -1e-6, 1.05e7)] == ["2×10⁻⁵", "−1×10⁻⁶", "1.05×10⁷"]
    assert [numbers.power_of_ten(exponent) for exponent in (-4, 0, 2)] == ["10⁻⁴", "1", "10²"]


@pytest.mark.parametrize(
    ("expected", "found", "text"),
    [
        (52.1, 53.0, "+1.7 %"),
        (50.0, 49.8, "−0.4 %"),
        (1.0, 1.0, "0.0 %"),
        (0.0, 1.0, "–"),
        (math.nan, 1.0, "–"),
        (1.0, math.inf, "–"),
        (None, 1.0, "–"),
    ],
)
def test_a_deviation_has_its_sign(expected: float | None, found: float, text: str) -> None:
    assert numbers.deviation(expected, found) == text


@pytest.mark.parametrize(("share", "text"), [(0.4, "40 %"), (0.07, "7 %"), (0.125, "12.5 %"), (0.1 * 3, "30 %")])
def test_a_share_on_an_axis_is_short(share: float, text: str) -> None:
    assert numbers.share_tick(share) == text


def test_a_rise_says_its_sign_in_words() -> None:
    assert numbers.more(0.0312) == "0.0312 more"
    assert numbers.more(-1.5) == "1.50 less"
    assert numbers.more(0.0) == "unchanged"
    assert numbers.more(None) == numbers.MISSING
    assert numbers.exp(0.0) == 1.0
    assert numbers.exp(1e9) == math.inf
