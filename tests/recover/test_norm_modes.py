from lessons import TokenNet, teacher
from torch import nn

from shoal.recover.norm_modes import has_batch_norms, set_train_mode_


def norms(model):
    return {one.training for one in model.modules() if isinstance(one, nn.BatchNorm2d)}


def test_batch_norms_learn_in_large_mini_batches_only():
    model = teacher().train()
    assert norms(set_train_mode_(model, 16, 16)) == {True}
    assert not model.training
    assert norms(set_train_mode_(model, 15, 16)) == {False}


def test_dropout_stays_off():
    model = TokenNet().train()
    assert not any(one.training for one in set_train_mode_(model, 64, 16).modules())


def test_who_has_batch_norms():
    assert has_batch_norms(teacher())
    assert not has_batch_norms(TokenNet())
    assert not has_batch_norms(nn.BatchNorm1d(2, track_running_stats=False))
