import pytest
import torch

from shoal.batches import Batch
from shoal.errors import DataError
from shoal.pipeline.data_splits import split_samples, split_samples_for_plan


def numbered(*sizes, first=0):
    """Mini-batches of samples that are their own numbers."""
    found = []
    for size in sizes:
        found.append(Batch((torch.arange(first, first + size),)))
        first += size
    return found


def numbers(batches):
    return [int(one) for batch in batches for one in batch.args[0]]


def test_samples_are_split_at_any_place_and_none_is_lost():
    for most in range(12):
        first, rest = split_samples(numbered(4, 5, 1), most)
        assert numbers(first) == list(range(min(most, 10)))
        assert numbers(rest) == list(range(min(most, 10), 10))
        assert all(batch.size for batch in (*first, *rest))


def test_with_validation_all_calibration_is_fitted_on_and_a_third_judges():
    parts = split_samples_for_plan(numbered(8, 8), numbered(10, 10, 10, first=100), 128, 0.15)
    assert numbers(parts.fit_on) == list(range(16))
    assert numbers(parts.judge_on) == list(range(100, 110))
    assert numbers(parts.drop_on) == list(range(110, 130))


def test_no_more_samples_judge_than_asked_for():
    assert numbers(split_samples_for_plan(numbered(8), numbered(30, first=100), 4, 0.15).judge_on) == list(
        range(100, 104)
    )
    assert numbers(split_samples_for_plan(numbered(50, 50), None, 4, 0.5).judge_on) == list(range(4))


def test_without_validation_a_share_of_calibration_is_held_back_and_never_fitted_on():
    parts = split_samples_for_plan(numbered(20, 20), None, 128, 0.15)
    assert numbers(parts.judge_on) == list(range(6))
    assert numbers(parts.fit_on) == list(range(6, 40))
    assert numbers(parts.drop_on) == list(range(40))


def test_a_single_validation_sample_serves_for_both():
    parts = split_samples_for_plan(numbered(8), numbered(1, first=100), 128, 0.15)
    assert numbers(parts.judge_on) == numbers(parts.drop_on) == [100]


def test_of_one_mini_batch_a_quarter_is_held_back():
    parts = split_samples_for_plan(numbered(8), None, 128, 0.15)
    assert (numbers(parts.judge_on), numbers(parts.fit_on)) == ([0, 1], [2, 3, 4, 5, 6, 7])


def test_a_last_mini_batch_of_one_sample_is_left_out_unless_there_is_no_other():
    assert numbers(split_samples_for_plan(numbered(8, 1), numbered(3, first=100), 128, 0.15).fit_on) == list(range(8))
    assert numbers(split_samples_for_plan(numbered(1), numbered(3, first=100), 128, 0.15).fit_on) == [0]


def test_too_few_samples_are_refused():
    with pytest.raises(DataError, match="2 calibration samples, expected at least 3"):
        split_samples_for_plan(numbered(1, 1), None, 128, 0.15)
