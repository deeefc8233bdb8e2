import torch

from shoal.scanning.scores.largest_response import largest_response
from shoal.scanning.scores.statistics import Statistics


def test_the_largest_of_all_units_in_all_mini_batches():
    seen = Statistics()
    for values in ([[0.5, -3.0]], [[2.0, 1.0]]):
        seen.see_unit(torch.tensor(values))
        seen.see_branch(torch.ones(1, 2), torch.tensor(values))
    assert largest_response(seen) == 3.0


def test_zero_for_a_dead_block_and_none_without_data():
    seen = Statistics()
    assert largest_response(seen) is None
    seen.see_unit(torch.zeros(2, 3))
    seen.see_branch(torch.ones(2, 3), torch.zeros(2, 3))
    assert largest_response(seen) == 0.0
