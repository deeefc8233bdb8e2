import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shoal.measure import sequences
from shoal.measure.quality import Predictions, compare, paired_predictions, predictions, quality
from shoal.measure.sequences import concatenate, gather_positions, reduce_sequences, sample_positions


class Words(nn.Module):
    """Logits that depend on the token and on what it is told to add."""

    def __init__(self, classes=7, seed=0):
        super().__init__()
        self.table = nn.Embedding(classes, classes)
        nn.init.normal_(self.table.weight, generator=torch.Generator().manual_seed(seed))

    def forward(self, input_ids, attention_mask=None):
        return self.table(input_ids)


IDS = torch.randint(0, 7, (6, 10), generator=torch.Generator().manual_seed(1))
LENGTHS = [10, 9, 7, 10, 4, 2]
MASK = (torch.arange(10) < torch.tensor(LENGTHS).unsqueeze(1)).long()


def log_probs(*shape):
    return torch.log_softmax(torch.randn(*shape, generator=torch.Generator().manual_seed(0)), dim=-1)


def loader(mask, padding, batch=4):
    ids = torch.where(MASK == 1, IDS, torch.tensor(padding)) if mask is not None else IDS
    extra = {"attention_mask": mask} if mask is not None else {}
    return [
        {"input_ids": ids[at:end], "labels": ids[at:end], **{key: value[at:end] for key, value in extra.items()}}
        for at, end in ((0, batch), (batch, len(ids)))
    ]


def test_loss_and_answers_at_every_position():
    log_p, target = log_probs(3, 5, 7), torch.randint(0, 7, (3, 5))
    target[0, 1:] = -100
    found = reduce_sequences(log_p, target, None)
    assert found.labelled.tolist() == [1, 5, 5]
    assert found.tokens == 11
    whole = F.cross_entropy(log_p.movedim(-1, 1), target, ignore_index=-100, reduction="none").sum(1)
    assert torch.allclose(found.loss.float(), whole)
    assert torch.equal(found.answers.long(), log_p.argmax(-1))
    assert reduce_sequences(log_p, None, None).loss is None


def test_parts_join_in_order():
    one = reduce_sequences(log_probs(2, 3, 5), torch.zeros(2, 3, dtype=torch.int64), None)
    mask = torch.tensor([[True, True, False]])
    two = reduce_sequences(log_probs(1, 3, 5), torch.zeros(1, 3, dtype=torch.int64), mask)
    both = concatenate([one, two])
    assert both.counted.tolist() == [[True] * 3, [True] * 3, [True, True, False]]
    assert both.labelled.tolist() == [3, 3, 2]
    assert both.loss.tolist() == [*one.loss.tolist(), *two.loss.tolist()]
    assert concatenate([one, one]).counted is None


@pytest.mark.parametrize("padding", [0, 3, 6])
def test_padding_changes_no_figure(padding):
    nets = [Words(seed=0), Words(seed=1)]
    before, after = paired_predictions(nets, loader(MASK, padding))
    first, second = quality(before, "test"), compare(before, after, "test")
    losses, tokens, kl, same = [], 0, [], []
    for row, length in zip(IDS, LENGTHS, strict=True):
        p, q = (torch.log_softmax(net.table(row[:length]), dim=-1).double() for net in nets)
        losses.append(float(F.nll_loss(p[:-1], row[1:length], reduction="sum").detach()))
        tokens += length - 1
        kl.append(float((p.exp() * (p - q)).sum(-1).mean().detach()))
        same.append(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert first.tokens == tokens
    assert first.loss == pytest.approx(sum(losses) / tokens, rel=1e-5)
    assert first.perplexity == pytest.approx(math.exp(first.loss))
    assert second.kl == pytest.approx(sum(kl) / len(kl), rel=1e-5)
    assert second.agreement == pytest.approx(sum(same) / len(same))


def test_intervals_take_sequences_as_the_samples():
    nets = [Words(seed=0), Words(seed=1)]
    before, after = paired_predictions(nets, loader(None, 0))
    one, other = quality(before, "test"), quality(after, "test")
    low, high = one.loss_interval
    assert low < one.loss < high
    assert one.perplexity_interval == pytest.approx((math.exp(low), math.exp(high)))
    # Equally long sequences: Student's t over their means, however many tokens each holds.
    means = (before.sequences.loss / before.sequences.labelled).numpy()
    half = 2.5706 * means.std(ddof=1) / math.sqrt(len(means))
    assert high - one.loss == pytest.approx(half, rel=1e-3)
    paired = compare(before, after, "test")
    assert paired.loss_increase == pytest.approx(other.loss - one.loss)
    assert paired.loss_increase_interval[0] < paired.loss_increase < paired.loss_increase_interval[1]
    assert paired.top1_drop is None
    again = compare(before, before, "test")
    assert (again.loss_increase, again.loss_increase_interval) == (0.0, (0.0, 0.0))


def test_without_labels_there_is_divergence_alone():
    ids = [{"input_ids": IDS, "attention_mask": MASK}]
    before, after = (predictions(Words(seed=seed), ids) for seed in (0, 1))
    assert quality(before, "test").loss is None
    found = compare(before, after, "test")
    assert (found.loss_increase, found.kl > 0) == (None, True)


def test_a_large_vocabulary_is_thinned(monkeypatch):
    nets = [Words(seed=0), Words(seed=1)]
    whole = paired_predictions(nets, loader(MASK, 0))
    monkeypatch.setattr(sequences, "_KEPT", 7 * 5)
    thin = paired_predictions(nets, loader(MASK, 0))
    assert thin[0].log_probs.shape == (6, 5, 7)
    assert quality(thin[0], "test") == quality(whole[0], "test")
    one, two = compare(*whole, "test"), compare(*thin, "test")
    assert (one.agreement, one.loss_increase, one.n) == (two.agreement, two.loss_increase, two.n)
    assert two.kl == pytest.approx(one.kl, rel=0.5)
    assert two.kl != one.kl
    assert compare(thin[0], thin[0], "test").kl == 0.0


def test_positions_are_spread_and_none_is_padding(monkeypatch):
    monkeypatch.setattr(sequences, "_KEPT", 4 * 7)
    log_p = log_probs(6, 10, 7)
    assert sample_positions(log_p, None)[0].tolist() == [1, 3, 6, 8]
    chosen = sample_positions(log_p, MASK == 1)
    assert (chosen < torch.tensor(LENGTHS).unsqueeze(1)).all()
    left = MASK.flip(1) == 1  # padding on the left
    assert gather_positions(left, sample_positions(log_p, left)).all()
    monkeypatch.setattr(sequences, "_KEPT", 1)
    assert sample_positions(log_p, None).shape == (6, 4)
    monkeypatch.setattr(sequences, "_KEPT", 70)
    assert sample_positions(log_p, None) is None


def test_pixels_have_a_loss_and_no_perplexity():
    log_probs = torch.randn(3, 4, 5, 2, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    target = torch.zeros(3, 4, 5, dtype=torch.int64)
    found = quality(Predictions(log_probs, target), "test")
    assert (found.tokens, found.perplexity, found.perplexity_interval) == (60, None, None)
    assert found.loss == pytest.approx(-float(log_probs[..., 0].mean()))
