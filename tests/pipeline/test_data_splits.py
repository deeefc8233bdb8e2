import pytest
import torch

from shoal.batches import IGNORED, Batch
from shoal.errors import DataError
from shoal.measure import log_probabilities
from shoal.pipeline.data_splits import split_samples, split_samples_for_plan, with_mixup


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
    assert numbers(parts.fit) == list(range(16))
    assert numbers(parts.damage) == list(range(100, 110))
    assert numbers(parts.drop) == list(range(110, 130))


def test_no_more_samples_judge_than_asked_for():
    assert numbers(split_samples_for_plan(numbered(8), numbered(30, first=100), 4, 0.15).damage) == list(
        range(100, 104)
    )
    assert numbers(split_samples_for_plan(numbered(50, 50), None, 4, 0.5).damage) == list(range(4))


def test_without_validation_a_share_of_calibration_is_held_back_and_never_fitted_on():
    parts = split_samples_for_plan(numbered(20, 20), None, 128, 0.15)
    assert numbers(parts.damage) == list(range(6))
    assert numbers(parts.fit) == list(range(6, 40))
    assert numbers(parts.drop) == list(range(40))


def test_a_single_validation_sample_serves_for_both():
    parts = split_samples_for_plan(numbered(8), numbered(1, first=100), 128, 0.15)
    assert numbers(parts.damage) == numbers(parts.drop) == [100]


def test_of_one_mini_batch_a_quarter_is_held_back():
    parts = split_samples_for_plan(numbered(8), None, 128, 0.15)
    assert (numbers(parts.damage), numbers(parts.fit)) == ([0, 1], [2, 3, 4, 5, 6, 7])


def test_a_last_mini_batch_of_one_sample_is_used_as_well():
    assert numbers(split_samples_for_plan(numbered(8, 1), numbered(3, first=100), 128, 0.15).fit) == list(range(9))


def test_too_few_samples_are_refused():
    with pytest.raises(DataError, match="2 calibration samples, expected at least 3"):
        split_samples_for_plan(numbered(1, 1), None, 128, 0.15)


def images(n=4):
    return torch.arange(float(n)).reshape(n, 1, 1, 1).expand(n, 3, 2, 2).clone()


def test_behind_each_mini_batch_comes_its_blend_half_and_half_with_the_neighbour():
    first, second = Batch((images(),)), Batch((images(2) + 10,))
    mixed = with_mixup([first, second])
    assert len(mixed) == 4
    assert torch.equal(mixed[0].args[0], images())
    assert mixed[1].args[0][:, 0, 0, 0].tolist() == [1.5, 0.5, 1.5, 2.5]
    assert torch.equal(mixed[2].args[0], images(2) + 10)
    assert mixed[3].args[0][:, 0, 0, 0].tolist() == [10.5, 10.5]


def test_labels_are_dropped_and_the_batches_stay_as_they_were():
    batch = Batch((images(),), target=torch.tensor([0, 1, 2, 3]))
    assert [one.target for one in with_mixup([batch])] == [None, None]
    assert batch.target is not None
    assert torch.equal(batch.args[0], images())


def test_tokens_stay_alone():
    tokens = Batch(kwargs={"input_ids": torch.arange(6).reshape(2, 3), "scale": torch.ones(2)})
    [mixed] = with_mixup([tokens])
    assert torch.equal(mixed.kwargs["input_ids"], tokens.kwargs["input_ids"])


def test_one_sample_has_no_neighbour():
    assert len(with_mixup([Batch((images(1),))])) == 1


def test_keywords_are_blended_and_what_is_no_tensor_of_samples_is_handed_on():
    batch = Batch((images(2),), {"extra": torch.tensor([[0.0], [4.0]]), "temperature": torch.tensor(3.0), "flag": True})
    _, blend = with_mixup([batch])
    assert blend.kwargs["extra"].tolist() == [[2.0], [2.0]]
    assert blend.kwargs["temperature"] == 3.0
    assert blend.kwargs["flag"] is True


def test_the_shape_of_labels_stays_and_tells_the_axis_of_the_classes():
    batch = Batch((images(),), target=torch.zeros(4, 5, dtype=torch.long))
    mixed = with_mixup([batch])
    assert [one.target.tolist() for one in mixed] == [[[IGNORED] * 5] * 4] * 2
    assert log_probabilities(torch.randn(4, 3, 5), mixed[1].target).shape == (4, 5, 3)


def test_mini_batches_of_a_single_sample_stay_as_they_are():
    singles = [Batch((torch.randn(1, 3, size),)) for size in (4, 5, 6)]
    assert split_samples_for_plan(singles, [Batch((torch.randn(3, 3, 4),))], 2, 0.5).fit == singles
