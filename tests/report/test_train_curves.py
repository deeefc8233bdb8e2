import re

import pytest
from trained import make_rows

from shoal.report.train_curves import curves, describe


def points(drawn):
    found = re.findall(r'<polyline points="([^"]*)"', drawn)
    return [[tuple(map(float, one.split(","))) for one in line.split()] for line in found]


def test_errors_alive_blocks_and_rate_are_drawn_over_all_epochs():
    error, alive, rate = points(curves(make_rows(), 600, "c"))
    assert len(error) == len(alive) == len(rate) == 4
    assert [y for _, y in error] == sorted(y for _, y in error), "the error falls, so the line goes down the page"
    assert [y for _, y in alive] == sorted(y for _, y in alive)
    assert error[0][0] == rate[0][0]


def test_every_epoch_that_lost_a_block_is_marked_in_every_panel():
    drawn = curves(make_rows(), 600, "c")
    assert drawn.count('class="limit"') == 2 * 3


def test_test_errors_are_dots_with_their_numbers():
    drawn = curves(make_rows(), 600, "c")
    assert drawn.count("<circle") == 2
    assert "epoch 4: test error 10.0 %" in drawn


def test_the_picture_is_told_in_words():
    said = describe(make_rows())
    assert "from 50.0 % in epoch 1 to 12.5 % in epoch 4, on test 10.0 %" in said
    assert "1 after epoch 2, 1 after epoch 3" in said


@pytest.mark.parametrize("width", [340, 1000])
def test_everything_lies_within_the_picture(width):
    drawn = curves(make_rows(), width, "c")
    assert all(0 <= x <= width for line in points(drawn) for x, _ in line)


def test_one_epoch_and_none():
    assert curves([], 600, "c") == ""
    assert "<svg" in curves(make_rows(1), 600, "c")


def test_an_error_of_zero_and_a_rate_of_zero_have_a_place():
    rows = [row.model_copy(update={"train_error": 0.0, "test_error": 0.0, "rate": 0.0}) for row in make_rows()]
    assert "nan" not in curves(rows, 600, "c")
