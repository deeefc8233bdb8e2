import pytest
import torch
import torch.nn.functional as F

from shoal.batches import Batch, as_batch
from shoal.errors import DataError
from shoal.recover.losses import divergence_loss, feature_loss, label_loss
from shoal.recover.mixup import Mixup
from teaching import tokens

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


def test_features_that_the_teacher_has_far_out_do_not_count():
    expected, actual = torch.randn(400, 5), torch.randn(400, 5)
    near = (expected - expected.mean()).abs() <= 2 * expected.std(correction=0)
    alone = (actual - expected)[near].square().mean() / expected[near].var(correction=0)
    assert feature_loss({"a": expected}, {"a": actual}, sigmas=2.0) == pytest.approx(float(alone), rel=1e-5)
    huge = expected.clone()
    huge[3, 2] = 1000.0
    before = actual.clone().requires_grad_()
    feature_loss({"a": huge}, {"a": before}, sigmas=2.0).backward()
    assert before.grad[3, 2] == 0
    assert before.grad[0, 0] != 0
    assert feature_loss({"a": expected}, {"a": actual}, sigmas=0.0) == feature_loss({"a": expected}, {"a": actual})


def test_features_of_padding_do_not_count():
    batch = as_batch(tokens(count=4))
    wanted, own = torch.randn(4, 7, 3), torch.randn(4, 7, 3)
    alone = feature_loss({"a": wanted[:, :5]}, {"a": own[:, :5]})
    wanted[:, 5:] *= 100
    own[:, 5:] -= 100
    assert feature_loss({"a": wanted}, {"a": own}, batch) == pytest.approx(float(alone), rel=1e-5)


def test_features_of_another_shape_than_the_mask_all_count():
    batch = as_batch(tokens(count=4))
    for shape in ((4, 9, 3), (4, 7), (4, 7, 2, 2)):
        pair = {"a": torch.randn(shape)}, {"a": torch.randn(shape)}
        assert feature_loss(*pair, batch) == feature_loss(*pair)
    padding = Batch(kwargs={"x": torch.zeros(4, 7), "attention_mask": torch.zeros(4, 7)})
    assert feature_loss({"a": torch.randn(4, 7, 3)}, {"a": torch.randn(4, 7, 3)}, padding).isfinite()


def test_of_two_masks_the_one_that_fits_counts():
    kwargs = {"attention_mask": torch.ones(4, 9), "decoder_input_ids": torch.zeros(4, 7)}
    kwargs |= {"decoder_attention_mask": torch.tensor([[1.0] * 5 + [0.0] * 2] * 4)}
    wanted, own = torch.randn(4, 7, 3), torch.randn(4, 7, 3)
    alone = feature_loss({"a": wanted[:, :5]}, {"a": own[:, :5]})
    assert feature_loss({"a": wanted}, {"a": own}, Batch(kwargs=kwargs)) == pytest.approx(float(alone), rel=1e-5)


def test_labels_of_blended_samples_count_by_their_weight():
    logits = torch.randn(4, 3)
    assert label_loss(logits, X, None) == pytest.approx(float(F.cross_entropy(logits, X.target)), rel=1e-5)
    blend = Mixup(torch.full((4,), 0.25), torch.tensor([1, 2, 3, 0]))
    by_hand = 0.25 * F.cross_entropy(logits, X.target) + 0.75 * F.cross_entropy(logits, X.target[blend.partner])
    assert label_loss(logits, X, blend) == pytest.approx(float(by_hand), rel=1e-5)


def test_missing_labels_are_said_where_the_loss_needs_them():
    with pytest.raises(DataError, match=r"no labels.*\n.*set `labels` to 0"):
        label_loss(torch.randn(4, 3), Batch((torch.zeros(4, 1),)), None)
    with pytest.raises(DataError, match="one class index for each output"):
        label_loss(torch.randn(4, 3), Batch((torch.zeros(4, 1),), {}, torch.rand(4)), None)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.tensor([0, 1, 3, 1]), "label 3 does not fit a model with 3 classes"),
        (torch.tensor([0, 1, -1, 1]), "label -1 does not fit a model with 3 classes"),
        (torch.tensor([0, 1, 2]), r"labels of shape \(3,\) for 4 samples"),
        (torch.tensor([0, 200, 1, 1], dtype=torch.uint8), "label 200 does not fit"),
    ],
)
def test_labels_that_do_not_fit_are_named(labels, said):
    with pytest.raises(DataError, match=said):
        label_loss(torch.randn(4, 3), Batch((torch.zeros(4, 1),), {}, labels), None)


def test_labels_of_any_integers_and_in_a_column():
    logits, wanted = torch.randn(4, 3), torch.tensor([0, -100, 2, 1])
    for labels in (X.target.to(torch.uint8), X.target.int(), X.target.unsqueeze(1), X.target.float()):
        given = Batch((torch.zeros(4, 1),), {}, labels)
        assert float(label_loss(logits, given, None)) == pytest.approx(float(label_loss(logits, X, None)))
    by_hand = F.cross_entropy(logits, wanted, reduction="none").mean()
    given = Batch((torch.zeros(4, 1),), {}, wanted)
    assert float(label_loss(logits, given, None)) == pytest.approx(float(by_hand), rel=1e-5)
