import pytest
import torch

from shoal.scanning.scores.mean_response import mean_response
from shoal.scanning.scores.statistics import Statistics


def test_every_value_counts_the_same_in_uneven_mini_batches():
    branch = torch.randn(7, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    seen = Statistics()
    for part in branch.split(3):
        seen.see_branch(torch.ones_like(part), part)
    assert mean_response(seen) == pytest.approx(float(branch.double().abs().mean()), rel=1e-6)
    assert mean_response(Statistics()) is None
