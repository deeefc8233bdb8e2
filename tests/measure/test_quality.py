import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shoal.errors import DataError, ModelRaisedError, NonFiniteError, UsageError
from shoal.measure.classes import kl_per_sample, log_probabilities
from shoal.measure.intervals import mcnemar, paired_drop, wilson
from shoal.measure.quality import (
    Predictions,
    compare,
    paired_predictions,
    predictions,
    quality,
)
from shoal.record import Comparison, Quality


class Lookup(nn.Module):
    """Answers with fixed logits: the input holds row numbers."""

    def __init__(self, logits):
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, x):
        return self.logits[x]


class Noisy(nn.Module):
    def __init__(self, raises=False):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
        self.raises = raises

    def forward(self, x):
        out = self.body(x) + 0 * torch.rand(1)
        if self.raises:
            raise RuntimeError("broken on purpose")
        return out


def loader_of(target, batch=4):
    rows = torch.arange(len(target))
    return [(rows[i : i + batch], target[i : i + batch]) for i in range(0, len(target), batch)]


def log_probs(*shape, seed=0):
    return torch.log_softmax(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_predictions_hold_every_sample_in_order():
    logits = torch.randn(10, 5)
    target = torch.randint(0, 5, (10,))
    found = predictions(Lookup(logits), loader_of(target))
    assert torch.equal(found.log_probs, torch.log_softmax(logits, dim=1))
    assert torch.equal(found.target, target)
    assert (found.n, found.classes, found.log_probs.dtype) == (10, 5, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_predictions_are_float32_whatever_the_model_computes_in(dtype):
    found = predictions(Lookup(torch.randn(4, 3).to(dtype)), [torch.arange(4)])
    assert found.log_probs.dtype == torch.float32
    assert found.target is None


def test_the_network_and_the_random_state_come_back():
    model = Noisy().train()
    model.body[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    predictions(model, [torch.randn(4, 4, generator=torch.Generator().manual_seed(0))])
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_the_network_comes_back_when_it_raises():
    model = Noisy(raises=True).train()
    with pytest.raises(ModelRaisedError, match="broken on purpose"):
        predictions(model, [torch.randn(4, 4)])
    assert all(module.training for module in model.modules())
    assert torch.is_grad_enabled()


def test_networks_see_the_same_batches_of_a_shuffling_loader():
    data = torch.utils.data.TensorDataset(torch.randn(40, 4), torch.arange(40) % 3)
    loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)
    model = Noisy()
    one, two = paired_predictions([model, model], loader)
    assert torch.equal(one.log_probs, two.log_probs)
    assert compare(one, two, "test").kl == 0


def test_separate_passes_over_a_shuffling_loader_are_refused():
    generator = torch.Generator().manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(40, 4))
    loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True, generator=generator)
    batches = ([x for (x,) in loader], [x for (x,) in loader])
    one, two = (predictions(Noisy(), part) for part in batches)
    with pytest.raises(DataError, match="same samples"):
        compare(one, two, "test")


def test_the_batch_size_does_not_matter_for_being_the_same_samples():
    target = torch.randint(0, 3, (10,))
    model = Lookup(torch.randn(10, 3))
    one, two = predictions(model, loader_of(target, 4)), predictions(model, loader_of(target, 3))
    assert one.inputs == two.inputs
    assert compare(one, two, "test").agreement == 1


@pytest.mark.parametrize("label", [5, 9, -1, -100])
def test_labels_out_of_range_are_named(label):
    target = torch.tensor([0, 1, label, 4])
    with pytest.raises(DataError, match=rf"label {label} .*5 classes"):
        predictions(Lookup(torch.randn(4, 5)), loader_of(target))


@pytest.mark.parametrize("loader", [[], iter(()), (item for item in ())])
def test_an_empty_loader_is_refused(loader):
    with pytest.raises(DataError, match="no mini-batch"):
        predictions(Lookup(torch.randn(4, 5)), loader)


def test_a_batch_without_samples_is_refused():
    with pytest.raises(DataError, match="without samples"):
        predictions(Lookup(torch.randn(4, 5)), [torch.arange(0)])


def test_no_networks_are_refused():
    with pytest.raises(UsageError):
        paired_predictions([], [torch.arange(2)])


def test_non_finite_outputs_are_refused():
    logits = torch.randn(4, 5)
    logits[2, 1] = math.nan
    with pytest.raises(NonFiniteError):
        predictions(Lookup(logits), [torch.arange(4)])


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 6, 1)])
def test_a_single_output_is_no_classification(shape):
    said = predictions(Lookup(torch.randn(shape)), [torch.arange(4)])
    assert not said.are_classes
    found = compare(said, said, "test")
    assert (found.agreement, found.top1_drop, found.mse) == (None, None, 0.0)
    assert quality(said, "test").top1 is None


def test_outputs_without_a_row_per_sample_are_refused():
    with pytest.raises(DataError, match="one row per sample"):
        predictions(nn.Flatten(0), [torch.randn(4, 3)])


def test_labels_for_some_batches_only_are_refused():
    loader = [(torch.arange(2), torch.tensor([0, 1])), torch.arange(2)]
    with pytest.raises(DataError, match="1 of 2 mini-batches"):
        predictions(Lookup(torch.randn(2, 3)), loader)


def test_too_few_labels_are_refused():
    with pytest.raises(DataError, match="as many labels"):
        predictions(Lookup(torch.randn(4, 3)), [(torch.arange(4), torch.tensor([0, 1, 2]))])


def test_other_sizes_are_refused():
    class Maps(nn.Module):
        def forward(self, x):
            return x.expand(-1, 7, -1, -1)

    with pytest.raises(DataError, match="one size"):
        predictions(Maps(), [torch.zeros(2, 1, 5, 4), torch.zeros(2, 1, 6, 3)])


class Tokens(nn.Module):
    """Scores, features and the likeliest token at each position."""

    def __init__(self, seed):
        super().__init__()
        self.table = nn.Embedding(9, 9)
        nn.init.normal_(self.table.weight, generator=torch.Generator().manual_seed(seed))

    def forward(self, input_ids, attention_mask=None):
        scores = self.table(input_ids)
        return {"logits": scores, "features": scores[..., :4], "tokens": scores.argmax(-1)}


@pytest.mark.parametrize("kept", [2**18, 40])
def test_texts_padded_to_the_longest_of_each_mini_batch_count_as_those_padded_to_the_longest_of_all(kept, monkeypatch):
    monkeypatch.setattr("shoal.measure.sequences._KEPT", kept)
    generator = torch.Generator().manual_seed(0)
    lengths = [2, 3, 7, 12, 5, 4]
    ids = torch.randint(1, 9, (6, 12), generator=generator)
    mask = torch.stack([(torch.arange(12) < length).long() for length in lengths])
    labels = torch.randint(0, 9, (6, 12), generator=generator).masked_fill(mask == 0, -100)
    before, after = Tokens(1), Tokens(2)
    found = []
    for longest in ([3, 12, 5], [12, 12, 12]):
        loader = [
            {"input_ids": ids[r], "attention_mask": mask[r], "labels": labels[r]}
            for r in ((slice(2 * i, 2 * i + 2), slice(length)) for i, length in enumerate(longest))
        ]
        answers = [predictions(model, loader) for model in (before, after)]
        comparison, figures = compare(*answers, "test"), quality(answers[1], "test")
        found.append(
            [figures.loss, figures.tokens, comparison.agreement, comparison.kl]
            + [figure for part in comparison.outputs for figure in (part.kl, part.mse, part.differing)]
        )
    same = 13 if kept > 40 else 3  # of few positions the divergence is an estimate
    assert found[0][:same] == pytest.approx(found[1][:same])
    assert found[0][3] == pytest.approx(found[1][3], rel=0.2)


@pytest.mark.parametrize(
    ("target", "labels"),
    [
        (torch.tensor([[0], [2]]), [0, 2]),
        (torch.tensor([0.0, 2.0], dtype=torch.float64), [0, 2]),
        (torch.tensor([0, 2], dtype=torch.uint8), [0, 2]),
        (torch.tensor([0.5, 1.5]), None),
        (torch.zeros(2, 3), None),
    ],
)
def test_labels_in_other_forms(target, labels):
    found = predictions(Lookup(torch.randn(2, 3)), [(torch.arange(2), target)])
    assert found.target is None if labels is None else found.target.tolist() == labels


def test_quality_counts_right_answers():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    target = torch.tensor([0, 1, 0, 0])
    found = quality(predictions(Lookup(logits), loader_of(target)), "test")
    assert (found.split, found.n, found.top1, found.top1_interval) == ("test", 4, 0.75, wilson(3, 4))
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(logits, target)))
    assert Quality.model_validate_json(found.model_dump_json()) == found


def test_one_hot_labels_are_the_labels_that_they_stand_for():
    logits, labels = torch.randn(12, 3), torch.arange(12) % 3
    one_hot = nn.functional.one_hot(labels, 3)
    expected = quality(predictions(Lookup(logits), loader_of(labels)), "test").top1
    assert quality(predictions(Lookup(logits), loader_of(one_hot.float())), "test").top1 == expected
    several = one_hot.float() + one_hot.roll(1, 0)
    assert quality(predictions(Lookup(logits), loader_of(several)), "test").top1 is None


def test_quality_without_labels():
    found = quality(Predictions(log_probs(6, 3)), "train")
    assert (found.split, found.n, found.top1, found.top1_interval, found.loss) == (
        "train",
        6,
        None,
        None,
        None,
    )


def test_quality_refuses_labels_that_do_not_fit():
    with pytest.raises(DataError, match="label 3 "):
        quality(Predictions(log_probs(2, 3), torch.tensor([0, 3])), "test")
    with pytest.raises(DataError, match="one label for each"):
        quality(Predictions(log_probs(2, 3), torch.tensor([0])), "test")
    with pytest.raises(DataError, match="at least one sample"):
        quality(Predictions(torch.empty(0, 3)), "test")


@pytest.mark.parametrize("layout", ["language", "segmentation"])
def test_positions_stay_inside_their_sample(layout):
    log_p = log_probs(6, 4, 5, 7) if layout == "segmentation" else log_probs(6, 20, 7)
    target = torch.randint(0, 7, log_p.shape[:-1])
    target[0, 0] = -100
    as_returned = log_p.movedim(-1, 1) if layout == "segmentation" else log_p
    found = predictions(Lookup(as_returned), loader_of(target))
    assert torch.allclose(found.log_probs, log_p, atol=1e-6)
    assert found.n == 6
    score = quality(found, "test")
    expected = nn.functional.cross_entropy(log_p.reshape(-1, 7), target.reshape(-1), ignore_index=-100)
    assert score.loss == pytest.approx(float(expected), rel=1e-5)
    assert (score.n, score.top1) == (6, None)
    other = Predictions(log_probs(*log_p.shape, seed=1), found.target)
    against = compare(found, other, "test")
    same = (found.log_probs.argmax(-1) == other.log_probs.argmax(-1)).double().mean()
    assert against.n == 6
    assert against.agreement == pytest.approx(float(same))
    assert against.agreement_interval == pytest.approx(wilson(6 * float(same), 6))
    assert (against.top1_drop, against.lost) == (None, None)


@pytest.mark.parametrize(
    ("logits", "target", "expected"),
    [
        ((2, 3), None, (2, 3)),
        ((2, 5, 3), None, (2, 5, 3)),
        ((2, 3, 5), (2, 5), (2, 5, 3)),
        ((2, 5, 3), (2, 5), (2, 5, 3)),
        ((2, 3, 5, 6), None, (2, 5, 6, 3)),
        ((2, 3, 5, 6), (2, 5, 6), (2, 5, 6, 3)),
        ((2, 5, 6, 3), (2, 5, 6), (2, 5, 6, 3)),
        ((2, 3, 5, 6), (2,), (2, 5, 6, 3)),
    ],
)
def test_the_classes_go_to_the_end(logits, target, expected):
    found = log_probabilities(torch.randn(logits), torch.zeros(target) if target else None)
    assert found.shape == expected
    assert torch.allclose(found.exp().sum(-1), torch.ones(expected[:-1]), atol=1e-5)


def test_compare_counts_sample_by_sample():
    target = torch.tensor([0, 0, 0, 0, 1, 1])
    right, wrong = torch.tensor([2.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 2.0])
    flip = torch.tensor([0.0, 2.0, 0.0])
    before = torch.log_softmax(torch.stack([right, right, right, wrong, flip, right]), dim=1)
    after = torch.log_softmax(torch.stack([right, wrong, wrong, right, flip, wrong]), dim=1)
    found = compare(Predictions(before, target), Predictions(after, target), "test")
    assert (found.n, found.lost, found.won) == (6, 2, 1)
    assert found.agreement == pytest.approx(2 / 6)
    assert found.agreement_interval == wilson(2, 6)
    assert found.top1_drop == pytest.approx(1 / 6)
    assert found.top1_drop_interval == paired_drop(6, 2, 1)
    assert found.p_value == mcnemar(2, 1)
    expected = nn.functional.kl_div(after, before, log_target=True, reduction="batchmean")
    assert found.kl == pytest.approx(float(expected), rel=1e-5)
    assert found.kl_interval[0] <= found.kl <= found.kl_interval[1]
    assert Comparison.model_validate_json(found.model_dump_json()) == found


def test_compare_a_network_with_itself():
    same = Predictions(log_probs(50, 4), torch.zeros(50, dtype=torch.long))
    found = compare(same, same, "test")
    assert (found.agreement, found.kl, found.kl_interval, found.top1_drop) == (1.0, 0.0, (0.0, 0.0), 0.0)
    assert found.p_value == 1.0
    low, high = found.top1_drop_interval
    assert low < 0 < high


def test_compare_a_single_sample():
    one = Predictions(log_probs(1, 4), torch.tensor([1]))
    found = compare(one, Predictions(log_probs(1, 4, seed=1), torch.tensor([1])), "test")
    assert found.kl_interval == (0.0, math.inf)


@pytest.mark.parametrize(
    "other",
    [
        Predictions(log_probs(5, 3)),
        Predictions(log_probs(4, 4)),
        Predictions(log_probs(4, 3), torch.tensor([0, 1, 2, 1])),
        Predictions(log_probs(4, 3), None),
    ],
)
def test_compare_refuses_what_does_not_belong_together(other):
    with pytest.raises(DataError):
        compare(Predictions(log_probs(4, 3), torch.tensor([0, 1, 2, 0])), other, "test")


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(2, 12),
    st.sampled_from([0.0, 1e-6, 1e-3, 1.0, 30.0]),
    st.integers(0, 2**31 - 1),
)
def test_kl_is_that_of_the_definition(samples, classes, distance, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    others = logits + distance * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    found = kl_per_sample(torch.log_softmax(logits, dim=-1), others)
    p, q = torch.softmax(logits, -1).numpy(), torch.softmax(others, -1).numpy()
    assert found.shape == (samples,)
    assert (found >= 0).all()
    assert np.allclose(found.numpy(), (p * np.log(p / q)).sum(-1), rtol=1e-6, atol=1e-14)


def test_kl_of_a_network_from_itself_is_exactly_zero():
    for dtype in (torch.float32, torch.bfloat16):
        logits = (5 * torch.randn(200, 10)).to(dtype)
        assert (kl_per_sample(log_probabilities(logits), logits) == 0).all()


def test_kl_is_not_symmetric_and_takes_logits_with_any_offset():
    original, other = log_probs(8, 5), log_probs(8, 5, seed=1)
    assert torch.allclose(kl_per_sample(original, other), kl_per_sample(original, other + 7), atol=1e-6)
    assert not torch.allclose(kl_per_sample(original, other), kl_per_sample(other, original), rtol=1e-2)


def test_kl_of_extreme_logits_is_finite():
    original = torch.log_softmax(torch.tensor([[1e4, 0.0], [0.0, 0.0]]), dim=-1)
    other = torch.tensor([[0.0, 1e4], [0.0, 0.0]])
    assert torch.equal(kl_per_sample(original, other), torch.tensor([1e4, 0.0], dtype=torch.float64))


def test_kl_averages_positions_and_accepts_both_layouts():
    original, other = log_probs(3, 4, 6, 5), log_probs(3, 4, 6, 5, seed=1)
    expected = torch.stack(
        [kl_per_sample(original[i].reshape(-1, 5), other[i].reshape(-1, 5)).mean() for i in range(3)]
    )
    assert torch.allclose(kl_per_sample(original, other), expected)
    assert torch.allclose(kl_per_sample(original, other.movedim(-1, 1)), expected)


def test_kl_in_chunks_is_the_same(monkeypatch):
    original, other = log_probs(11, 5), log_probs(11, 5, seed=1)
    whole = kl_per_sample(original, other)
    monkeypatch.setitem(kl_per_sample.__globals__, "_CHUNK", 12)
    assert torch.equal(kl_per_sample(original, other), whole)


def test_kl_refuses_other_shapes():
    with pytest.raises(DataError, match="same classes"):
        kl_per_sample(log_probs(4, 3), torch.randn(4, 5))
