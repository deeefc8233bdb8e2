import pytest
import torch
from torch import nn

from shoal.scanning.scores.rows import channel_axis, channels_last, narrowed, some_positions


class LayerNorm2d(nn.LayerNorm):
    """As timm has it: it normalises axis 1."""


@pytest.mark.parametrize(
    ("shape", "branch", "axis"),
    [
        ((2, 8), [nn.Linear(8, 8)], -1),
        ((2, 8, 8, 8), [nn.Conv2d(8, 4, 1)], 1),
        ((2, 8, 8, 8), [nn.Linear(8, 4)], -1),
        ((2, 8, 8, 8), [nn.LayerNorm(8), nn.Linear(8, 4)], -1),
        ((2, 8, 8, 8), [LayerNorm2d(8), nn.Conv2d(8, 4, 1)], 1),
        ((2, 8, 8, 8), [nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)], 1),
        ((2, 8, 8, 8), [nn.Conv2d(8, 8, 7, groups=8), nn.LayerNorm(8), nn.Linear(8, 32)], 1),
        ((2, 16, 8), [nn.LayerNorm(8), nn.Linear(8, 8)], -1),
        ((2, 8, 16), [nn.Conv1d(8, 8, 3)], 1),
        ((2, 8, 8), [nn.Conv2d(8, 8, 3), nn.Linear(8, 8)], -1),
        ((2, 16, 8), [nn.Linear(8, 16), nn.Conv1d(16, 16, 4)], -1),
        ((2, 5, 6), [], -1),
        ((2, 5, 6, 7), [], 1),
    ],
)
def test_where_the_channels_are(shape, branch, axis):
    assert channel_axis(torch.zeros(shape), branch) == axis


def test_channels_last():
    x = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    assert torch.equal(channels_last(x, 1)[1, 7], x[1, :, 1, 2])
    assert torch.equal(channels_last(x, -1)[1, 7], x[1, 1, 3])
    assert channels_last(x[:, :, 0, 0], -1).shape == (2, 1, 3)


def test_positions_are_few_distinct_and_the_same_in_every_run():
    state = torch.random.get_rng_state()
    one, again, next_turn = (some_positions(100, 1024, turn, torch.device("cpu")) for turn in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, next_turn)
    assert len(set(one.tolist())) == 10
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(some_positions(4, 9, 0, torch.device("cpu")), torch.arange(9))
    assert len(some_positions(5000, 9, 0, torch.device("cpu"))) == 1


def test_wide_rows_are_turned_all_alike():
    state = torch.random.get_rng_state()
    x = torch.randn(7, 1000, generator=torch.Generator().manual_seed(0)).half()
    assert narrowed(x).shape == (7, 256)
    assert torch.equal(narrowed(x), narrowed(x.clone()))
    assert float(narrowed(x).norm() / x.double().norm()) == pytest.approx(1, abs=0.1)
    assert torch.equal(narrowed(x[:, :256]), x[:, :256].double())
    assert torch.equal(torch.random.get_rng_state(), state)
