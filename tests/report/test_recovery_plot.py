import math
import re
from itertools import pairwise

import pytest
from recovered import CURVE, make_recovery

from shoal.report.recovery_plot import describe, legend, plot


def lines(drawn: str) -> list[list[tuple[float, float]]]:
    found = re.findall(r'<polyline points="([^"]*)"', drawn)
    return [[tuple(map(float, one.split(","))) for one in line.split()] for line in found]


def start_of(drawn: str) -> float:
    return float(re.search(r'y1="([\d.]+)"[^>]*class="limit"', drawn)[1])


def kept_of(drawn: str) -> tuple[float, float]:
    return tuple(map(float, re.search(r'cx="([\d.]+)" cy="([\d.]+)" r="7.5"', drawn).groups()))


def test_the_curve_begins_at_the_cut_and_rises_before_it_falls() -> None:
    drawn = plot(make_recovery(), 1000, "r")
    seen, losses = lines(drawn)
    assert (len(seen), len(losses)) == (4, 3)
    assert seen[0][1] == pytest.approx(start_of(drawn), abs=0.06)
    assert seen[1][1] < seen[0][1] < seen[2][1] < seen[3][1]
    assert [x for x, _ in losses] == [x for x, _ in seen[1:]]


def test_the_axis_is_logarithmic() -> None:
    equal = [{**one, "divergence": value} for one, value in zip(CURVE, (0.4, 0.2, 0.1, 0.05), strict=True)]
    seen = lines(plot(make_recovery(curve=equal), 1000, "r"))[0]
    gaps = [b[1] - a[1] for a, b in pairwise(seen)]
    assert gaps == pytest.approx([gaps[0]] * 3, abs=0.2)


def test_what_came_out_is_marked_where_it_is() -> None:
    drawn = plot(make_recovery(kept_step=100, divergence_after=0.012), 1000, "r")
    assert kept_of(drawn) == pytest.approx(lines(drawn)[0][2], abs=0.06)
    unchanged = plot(make_recovery(kept_step=0, divergence_after=0.02), 1000, "r")
    assert kept_of(unchanged) == pytest.approx((lines(unchanged)[0][0][0], start_of(unchanged)), abs=0.06)


def test_looks_without_numbers_are_left_out() -> None:
    nothing = [{**CURVE[2], "divergence": None, "loss": None}, {**CURVE[3], "divergence": math.nan, "loss": math.inf}]
    drawn = plot(make_recovery(curve=[*CURVE[:2], *nothing]), 600, "r")
    assert [len(line) for line in lines(drawn)] == [2, 1]
    assert not re.search(r"\b(nan|inf|None)\b", drawn)


def test_without_losses_there_is_one_set_of_axes() -> None:
    drawn = plot(make_recovery(curve=[{**one, "loss": None} for one in CURVE]), 600, "r")
    assert len(lines(drawn)) == 1
    assert "Training loss" not in drawn


@pytest.mark.parametrize(
    "changes", [{"curve": []}, {"curve": CURVE[:1]}, {"divergence_before": math.nan}, {"divergence_after": math.nan}]
)
def test_without_a_curve_there_is_no_picture(changes: dict[str, object]) -> None:
    assert plot(make_recovery(**changes), 600, "r") == ""


def test_a_divergence_of_zero_has_a_place() -> None:
    drawn = plot(make_recovery(curve=[*CURVE[:3], {**CURVE[3], "divergence": 0.0}], divergence_after=0.0), 600, "r")
    assert all(0 <= y <= 500 for line in lines(drawn) for _, y in line)


@pytest.mark.parametrize("width", [340, 1000])
def test_everything_lies_within_the_picture(width: int) -> None:
    drawn = plot(make_recovery(), width, "r")
    height = float(re.search(r'viewBox="0 0 \d+ ([\d.]+)"', drawn)[1])
    assert all(0 <= x <= width and 0 <= y <= height for line in lines(drawn) for x, y in line)


def test_the_picture_is_told_in_words_and_has_a_name() -> None:
    said = describe(make_recovery())
    for expected in ("0.0200 nats after the cut", "at most 0.0500 at step 50", "0.00800 nats", "from 0.100 to 0.0400"):
        assert expected in said
    drawn = plot(make_recovery(), 600, "r")
    assert '<title id="r-title">Divergence on validation over the steps</title>' in drawn
    assert 'aria-labelledby="r-title r-desc"' in drawn


def test_the_legend_names_every_sign() -> None:
    assert len(legend()) == 3
    assert all("<svg" in sign and meaning for sign, meaning in legend())
