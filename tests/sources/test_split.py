import pytest
import torch

from shoal.sources.parts import hold_out, random_subset


@pytest.mark.parametrize("labels", [None, torch.arange(100) % 4])
def test_every_index_once(labels):
    kept, held = hold_out(100, 0.2, seed=3, labels=labels)
    assert len(held) == 20
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(100))


def test_each_class_in_proportion():
    labels = torch.tensor([0] * 80 + [1] * 20)
    _, held = hold_out(100, 0.25, seed=0, labels=labels)
    assert torch.bincount(labels[held]).tolist() == [20, 5]


def test_order_is_mixed_so_that_the_first_few_are_a_fair_sample():
    labels = torch.arange(100) // 50
    kept, _ = hold_out(100, 0.2, seed=0, labels=labels)
    assert len(labels[kept[:20]].unique()) == 2


def test_same_seed_same_split():
    assert torch.equal(hold_out(50, 0.2, seed=1)[1], hold_out(50, 0.2, seed=1)[1])
    assert not torch.equal(hold_out(50, 0.2, seed=1)[1], hold_out(50, 0.2, seed=2)[1])


def test_a_class_of_one_sample_is_not_held_out():
    kept, held = hold_out(3, 0.5, seed=0, labels=torch.tensor([0, 0, 1]))
    assert 2 in kept.tolist()
    assert len(held) == 1


def test_a_fair_sample_is_not_the_first_few():
    rows = random_subset(100, 10, seed=0)
    assert len(rows.unique()) == 10
    assert rows.max() > 50
    assert random_subset(3, None, 0).tolist() == random_subset(3, 9, 0).tolist() == [0, 1, 2]
