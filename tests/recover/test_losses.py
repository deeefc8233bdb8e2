import pytest
import torch
import torch.nn.functional as F
from lessons import tokens

from shoal.batches import Batch, as_batch
from shoal.errors import DataError
from shoal.recover.blending import Blend
from shoal.recover.losses import divergence_loss, feature_loss, label_loss

X = Batch((torch.zeros(4, 1),), {}, torch.tensor([0, 1, 2, 1]))


def test_the_divergence_is_kl_and_zero_from_oneself():
    one, other = torch.randn(4, 3), torch.randn(4, 3)
    p = one.softmax(1)
    by_hand = (p * (one.log_softmax(1) - other.log_softmax(1))).sum(1).mean()
    assert divergence_loss(one, other, X) == pytest.approx(float(by_hand), rel=1e-5)
    assert float(divergence_loss(one, one, X)) == pytest.approx(0, abs=1e-7)


def test_positions_of_padding_do_not_count():
    batch = as_batch(tokens(count=4))
    one, other = torch.randn(4, 7, 6), torch.randn(4, 7, 6)
    before = divergence_loss(one, other, batch)
    other[:, 5:] += 100 * torch.randn(4, 2, 6)
    assert divergence_loss(one, other, batch) == pytest.approx(float(before))


def test_features_are_measured_by_their_variance():
    wanted = torch.randn(64, 5)
    said = feature_loss({"a": wanted, "b": 10 * wanted}, {"a": 0 * wanted, "b": 10 * wanted})
    assert float(said) == pytest.approx(0.5, rel=0.05)


def test_labels_of_blended_samples_count_by_their_weight():
    logits = torch.randn(4, 3)
    assert label_loss(logits, X, None) == pytest.approx(float(F.cross_entropy(logits, X.target)), rel=1e-5)
    blend = Blend(torch.full((4,), 0.25), torch.tensor([1, 2, 3, 0]))
    by_hand = 0.25 * F.cross_entropy(logits, X.target) + 0.75 * F.cross_entropy(logits, X.target[blend.partner])
    assert label_loss(logits, X, blend) == pytest.approx(float(by_hand), rel=1e-5)


def test_missing_labels_are_said_where_the_loss_needs_them():
    with pytest.raises(DataError, match=r"no labels.*\n.*set `labels` to 0"):
        label_loss(torch.randn(4, 3), Batch((torch.zeros(4, 1),)), None)
    with pytest.raises(DataError, match="one class index for each answer"):
        label_loss(torch.randn(4, 3), Batch((torch.zeros(4, 1),), {}, torch.rand(4)), None)
