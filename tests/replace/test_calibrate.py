import pytest
import torch
import torch.nn.functional as F
from given import data, randn
from torch import nn

from shoal.batches import Batch
from shoal.errors import ModelRaisedError
from shoal.replace import recalibrate_


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3, momentum=0.3)
        self.free = nn.BatchNorm2d(3, track_running_stats=False)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return F.relu(self.free(self.bn(x)))


def test_it_takes_the_statistics_of_the_data():
    model = Normed()
    model.bn.eval()
    with torch.no_grad():
        model.bn.weight.fill_(2.0)
    x = 3 * randn(16, 3, 5, 5, dtype=torch.float32) + 1
    assert recalibrate_(model, [Batch((x,))]) is model
    torch.testing.assert_close(model.bn.running_mean, x.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(model.bn.running_var, x.var(dim=(0, 2, 3)))
    assert model.bn.momentum == 0.3
    assert model.training
    assert not model.bn.training
    assert model.bn.weight.tolist() == [2.0] * 3


def test_mini_batches_weigh_by_their_samples_and_what_was_is_forgotten():
    model = Normed().double()
    samples = torch.arange(1, 20, dtype=torch.float64)[:, None, None, None] * randn(19, 3, 5, 5)
    parts = samples.split([8, 8, 3])
    variance = sum(len(part) / 19 * part.var(dim=(0, 2, 3)) for part in parts)
    for _ in range(2):
        recalibrate_(model, [Batch((part,)) for part in parts])
        torch.testing.assert_close(model.bn.running_mean, samples.mean(dim=(0, 2, 3)))
        torch.testing.assert_close(model.bn.running_var, variance)


def test_momentum_and_mode_come_back_after_an_error():
    model = Normed()
    with pytest.raises(ModelRaisedError):
        recalibrate_(model, [Batch((randn(2, 7, 5, 5, dtype=torch.float32),))])
    assert model.bn.momentum == 0.3
    assert model.bn.training


def test_a_network_without_norms_and_the_random_state_stay():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout()).double()
    before, state = [one.clone() for one in model.parameters()], torch.get_rng_state()
    recalibrate_(model, data(4, 3))
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
