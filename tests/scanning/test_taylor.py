import math

import torch

from shoal.scanning.scores.statistics import Statistics
from shoal.scanning.scores.taylor import taylor


def test_what_lowers_the_loss_now_would_raise_it_when_gone():
    seen = Statistics()
    seen.see_gradient(torch.tensor([[1.0, 2.0]]), torch.tensor([[-3.0, 0.5]]))
    seen.see_gradient(torch.tensor([[4.0, 0.0]]), torch.tensor([[-1.0, 9.0]]))
    seen.product_count = 4
    assert taylor(seen) == -(-3 + 1 - 4) / 4


def test_plain_zero_for_a_dead_block_and_none_without_a_gradient():
    assert taylor(Statistics()) is None
    seen = Statistics(product_count=3)
    seen.see_gradient(torch.zeros(3, 2), torch.ones(3, 2))
    assert math.copysign(1, taylor(seen)) == 1
    assert taylor(seen) == 0
