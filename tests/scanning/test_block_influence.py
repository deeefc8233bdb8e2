import pytest
import torch

from shoal.scanning.scores.block_influence import block_influence
from shoal.scanning.scores.statistics import Statistics


def influence(before, after):
    seen = Statistics()
    seen.see_pair(before, after)
    return block_influence(seen)


def test_zero_exactly_for_a_block_that_changes_nothing():
    x = 7 * torch.randn(4, 50, 37, generator=torch.Generator().manual_seed(0))
    assert influence(x, x.clone()) == 0.0
    assert influence(x.relu() * (x > 1), x.relu() * (x > 1)) == 0.0


def test_half_a_turn_a_quarter_and_the_mean_over_positions():
    x, y = torch.tensor([[[1.0, 0.0], [2.0, 0.0]]]), torch.tensor([[[-3.0, 0.0], [0.0, 1.0]]])
    assert influence(x, y) == pytest.approx((2 + 1) / 2)
    torch.manual_seed(0)
    x, y = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    expected = 1 - torch.nn.functional.cosine_similarity(x, y, dim=-1).mean()
    assert influence(x, y) == pytest.approx(float(expected), abs=1e-6)


def test_a_position_that_becomes_zero_has_lost_its_direction():
    assert influence(torch.tensor([[[1.0, 2.0], [0.0, 0.0]]]), torch.zeros(1, 2, 2)) == pytest.approx(0.5)
    assert block_influence(Statistics()) is None
