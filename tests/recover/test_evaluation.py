import math

import pytest
import torch

from shoal.batches import as_batch
from shoal.errors import DataError
from shoal.measure import compare, paired_predictions
from shoal.recover import evaluation as judging
from shoal.recover.evaluation import TeacherKL, validation_samples
from teaching import CLASSES, TokenNet, engine, images, student, teacher, tokens, validation


def test_the_mean_over_samples_and_as_many_blends():
    model, cut, given = teacher(), student(), validation_samples(validation(), 1000)
    found = TeacherKL(model, given, engine(), CLASSES)
    blends = [(x + x.roll(1, 0)) / 2 for x in validation()]
    before, after = paired_predictions([model, cut], [*validation(), *blends], reading=CLASSES)
    assert found.evaluate(cut) == pytest.approx(compare(before, after, "x").kl, rel=1e-5)
    assert (found.n, len(found.batches)) == (32, 4)
    assert found.evaluate(model) == 0


def test_answers_too_large_to_keep_are_asked_for_again(monkeypatch):
    model, cut, given = teacher(), student(), validation_samples(validation(), 1000)
    kept = TeacherKL(model, given, engine()).evaluate(cut)
    monkeypatch.setattr(judging, "_MAX_CACHED", 0)
    again = TeacherKL(model, given, engine())
    assert [again.evaluate(cut), again.evaluate(cut)] == [kept, kept]


def test_tokens_and_broken_students():
    model = TokenNet().eval()
    assert TeacherKL(model, [as_batch(tokens())], engine()).evaluate(model) == 0
    cut = student()
    torch.nn.init.constant_(cut.head.bias, float("nan"))
    assert math.isnan(TeacherKL(teacher(), validation_samples(validation(), 8), engine()).evaluate(cut))


def test_so_many_samples_and_at_least_one():
    assert [one.size for one in validation_samples([images(5), images(5)], 7)] == [5, 2]
    with pytest.raises(DataError, match="validation data is empty"):
        validation_samples([], 7)
