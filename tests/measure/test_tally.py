import math

import pytest
import torch

from shoal.batches import Batch
from shoal.errors import DataError
from shoal.measure import (
    Accumulator,
    Predictions,
    compare,
    log_probabilities,
    mean_interval,
    paired_drop,
    read_predictions,
)


def logits_and_labels(n=40, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    whole = 2 * torch.randn(n, classes, generator=generator)
    other = whole + torch.randn(n, classes, generator=generator)
    return whole, other, torch.randint(0, classes, (n,), generator=generator)


def test_sums_over_mini_batches_give_the_figures_of_compare():
    whole, other, labels = logits_and_labels()
    tally = Accumulator()
    for part in (slice(0, 7), slice(7, 40)):
        tally.add(read_predictions(whole[part], labels[part]), other[part], labels[part])
    expected = compare(
        Predictions(log_probabilities(whole), labels), Predictions(log_probabilities(other), labels), "test"
    )
    assert tally.n == 40
    assert tally.top1_drop == pytest.approx(expected.top1_drop)
    assert tally.drop_interval() == pytest.approx(expected.top1_drop_interval)
    assert tally.kl / tally.n == pytest.approx(expected.kl)
    assert tally.changed / tally.n == pytest.approx(1 - expected.agreement)
    assert (tally.lost, tally.won) == (expected.lost, expected.won)


def test_the_increase_of_the_loss_has_the_t_interval_of_the_paired_differences():
    whole, other, labels = logits_and_labels(seed=1)
    tally = Accumulator()
    tally.add(read_predictions(whole, labels), other, labels)
    cross_entropy = torch.nn.functional.cross_entropy
    difference = cross_entropy(other, labels, reduction="none") - cross_entropy(whole, labels, reduction="none")
    assert tally.increase / tally.n == pytest.approx(float(difference.mean()), abs=1e-5)
    assert tally.increase_interval() == pytest.approx(mean_interval(difference), abs=1e-5)


def test_without_labels_the_increase_is_the_divergence_and_there_is_no_top1():
    whole, other, _ = logits_and_labels()
    tally = Accumulator()
    tally.add(read_predictions(whole, None), other, None)
    assert tally.top1 is None
    assert tally.top1_drop is None
    assert tally.drop_interval() is None
    assert tally.increase == pytest.approx(tally.kl)


def test_a_network_does_not_differ_from_itself():
    whole, _, labels = logits_and_labels()
    tally = Accumulator()
    tally.add(read_predictions(whole, labels), whole.clone(), labels)
    assert (tally.kl, tally.changed, tally.increase, tally.lost, tally.won) == (0, 0, 0, 0, 0)
    low, high = tally.drop_interval()
    assert low < 0 < high


def test_one_sample_has_an_unbounded_interval():
    whole, other, labels = logits_and_labels(n=1)
    tally = Accumulator()
    tally.add(read_predictions(whole, labels), other, labels)
    assert tally.increase_interval() == (-math.inf, math.inf)


def test_higher_confidence_is_wider():
    assert paired_drop(100, 5, 2, 0.999)[1] > paired_drop(100, 5, 2)[1]
    whole, other, labels = logits_and_labels()
    tally = Accumulator()
    tally.add(read_predictions(whole, labels), other, labels)
    low, high = tally.increase_interval(0.999)
    assert low < tally.increase_interval()[0] < tally.increase_interval()[1] < high


def test_it_survives_a_journal():
    whole, other, labels = logits_and_labels()
    tally = Accumulator()
    tally.add(read_predictions(whole, labels), other, labels)
    assert Accumulator.from_dict(tally.to_dict()) == tally


def test_labels_per_position_give_a_loss_per_sample_and_skip_ignored_ones():
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, -100, 2], [0, 3, -100]])
    said = read_predictions(logits, labels)
    picked = torch.log_softmax(logits, -1)
    assert float(said.loss[0]) == pytest.approx(-float(picked[0, 0, 1] + picked[0, 2, 2]) / 2, abs=1e-6)
    assert said.hit is None


def test_labels_out_of_range_are_refused():
    with pytest.raises(DataError, match="label 9 does not fit a model with 5 classes"):
        read_predictions(torch.randn(1, 5), torch.tensor([9]))


def test_padding_does_not_count():
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    target = torch.tensor([[0, 1, 2], [1, 2, 2]])
    batch = Batch(kwargs={"input_ids": torch.zeros(2, 3, dtype=torch.int64), "attention_mask": mask})
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(2, 3, 4, generator=generator) for _ in range(2))
    found = []
    for noise in (0.0, 5.0):  # whatever is said at positions of padding
        shaken = other + noise * (1 - mask).unsqueeze(-1) * torch.randn(2, 3, 4, generator=generator)
        tally = Accumulator()
        tally.add(read_predictions(one, target, batch), shaken, target, batch)
        found.append(tally)
    assert found[0].to_dict() == pytest.approx(found[1].to_dict())
    without = Accumulator()
    without.add(read_predictions(one, target), other, target)
    assert without.kl != pytest.approx(found[0].kl)
    assert without.loss != pytest.approx(found[0].loss)
