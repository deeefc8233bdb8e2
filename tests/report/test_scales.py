import math

import pytest

from shoal.report import scales


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 0.04, [0.0, 0.01, 0.02, 0.03, 0.04]), (-1.3, 1.2, [-1.0, 0.0, 1.0]), (3.0, 3.0, [3.0])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert scales.ticks(low, high, 4) == expected


@pytest.mark.parametrize("values", [[], [None, 0.0, -1e-9, math.nan], [0.1], [1e-12, 1e3], [1.0, 10.0]])
def test_decades_hold_every_value_and_are_six_at_most(values: list[float | None]) -> None:
    scale = scales.decades(values)
    assert scale.high - scale.low <= 6
    assert all(0.0 <= scale.at(value) <= 1.0 for value in values if value is not None and not math.isnan(value))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0086, 0.046], ["0.01", "0.02", "0.05"]),
        ([0.09, 0.11], ["0.08", "0.1", "0.12"]),
        ([0.001, 0.9], ["0.001", "0.003", "0.01", "0.03", "0.1", "0.3", "1"]),
        ([1e-5, 5.0, 1e-9], ["10⁻⁵", "0.0001", "0.001", "0.01", "0.1", "1"]),
        ([3.0, None, 0.0, -1.0, math.nan, math.inf], ["2.5", "3", "3.5"]),
        ([1.3e-5, 6e-5], ["2×10⁻⁵", "5×10⁻⁵"]),
    ],
)
def test_logarithms_are_marked_at_round_numbers(values: list[float | None], expected: list[str]) -> None:
    scale = scales.logarithmic(values)
    assert [text for _, text in scale.labels()] == expected
    places = [place for place, _ in scale.labels()]
    assert places == sorted(places)
    assert all(0.0 <= scale.at(value) <= 1.0 for value in values if value is not None)


def test_equal_ratios_are_equally_far_apart() -> None:
    scale = scales.logarithmic([0.01, 0.4])
    assert scale.at(0.04) - scale.at(0.02) == pytest.approx(scale.at(0.4) - scale.at(0.2))
    assert scale.at(0.0) == 0.0 < scale.at(0.01)
    assert scales.logarithmic([]).at(1.0) == pytest.approx(0.5)


def test_scores_that_span_decades_are_logarithmic() -> None:
    scale = scales.for_scores([1e-4, 0.5])
    assert isinstance(scale, scales.Decades)
    assert scale.at(1e-2) == pytest.approx(0.5)


def test_zeros_get_a_place_of_their_own() -> None:
    scale = scales.for_scores([0.0, 1e-3, 1.0, 0.5])
    assert scale.labels()[0] == (0.0, "0")
    assert scale.at(0.0) == 0.0 < scale.at(1e-3) < scale.at(1.0) == 1.0


def test_values_too_small_to_draw_are_said_to_be_small() -> None:
    scale = scales.for_scores([1e-30, 0.01, 1.0])
    assert scale.labels()[0] == (0.0, "< 10⁻⁶")


@pytest.mark.parametrize("values", [[0.9, 0.99], [-1.0, 5.0, 900.0], [0.0, 0.0], [3.0], []])
def test_other_scores_are_plain(values: list[float]) -> None:
    scale = scales.for_scores(values)
    assert isinstance(scale, scales.Linear)
    assert all(0.0 <= scale.at(value) <= 1.0 for value in values)


def test_small_differences_stay_plain() -> None:
    assert isinstance(scales.for_differences([-0.5, 3.0], 1.0), scales.Linear)


def test_the_tolerance_stays_wide_beside_a_large_difference() -> None:
    scale = scales.for_differences([-0.5, 90.0], 1.0)
    assert isinstance(scale, scales.Squeezed)
    assert scale.at(1.0) - scale.at(-1.0) > 0.2
    assert [text for _, text in scale.labels()] == ["−1", "0", "1", "3", "10", "30", "100"]


def test_infinite_ends_lie_at_the_edges() -> None:
    for scale in (scales.for_differences([math.inf, 2.0], 1.0), scales.for_differences([-math.inf, 90.0], 1.0)):
        assert (scale.at(-math.inf), scale.at(math.inf)) == (0.0, 1.0)
