import pytest
import torch

from shoal.scanning.scores.relative_response import relative_response
from shoal.scanning.scores.statistics import Statistics


def test_the_mean_of_the_ratios_not_the_ratio_of_the_means():
    seen = Statistics()
    seen.see_branch(torch.tensor([[3.0, 4.0], [100.0, 0.0]]), torch.tensor([[5.0, 0.0], [0.0, 10.0]]))
    assert relative_response(seen) == pytest.approx((1 + 0.1) / 2)


def test_it_does_not_depend_on_the_scale():
    stream, branch = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    one, other = Statistics(), Statistics()
    one.see_branch(stream, branch)
    other.see_branch(1000 * stream, 1000 * branch)
    assert relative_response(one) == pytest.approx(relative_response(other), rel=1e-5)


def test_samples_without_a_stream_are_left_out():
    seen = Statistics()
    seen.see_branch(torch.zeros(1, 2), torch.ones(1, 2))
    assert relative_response(seen) is None
    seen.see_branch(torch.ones(1, 2), torch.ones(1, 2))
    assert relative_response(seen) == pytest.approx(1.0)
