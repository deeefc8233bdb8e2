import pytest
import torch

from shoal.regress import Moments, fit
from shoal.scanning.scores.linear_map_r2 import linear_map_r2
from shoal.scanning.scores.statistics import Statistics


def rows(seed, n, width):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def score(x, y):
    seen = Statistics()
    seen.see_rows(x, y, torch.arange(len(x)) % 2 == 1)
    return linear_map_r2(seen)


def test_one_for_a_linear_block_of_any_widths():
    x = rows(0, 60, 5)
    assert score(x, x) == pytest.approx(1.0, abs=1e-12)
    assert score(x, x @ rows(1, 5, 3) + 2) == pytest.approx(1.0, abs=1e-9)


def test_it_is_judged_on_samples_that_were_not_fitted():
    x, noise = rows(0, 24, 10), rows(1, 24, 10)
    assert score(x, noise) < 0.2
    train, held_out = Moments(10, 10), Moments(10, 10)
    train.add(x[0::2], noise[0::2])
    held_out.add(x[1::2], noise[1::2])
    assert fit(train, train, target=torch.eye(10)).r2_fit > 0.7
    assert score(x, noise) == fit(train, held_out, target=torch.eye(10)).r2_held_out


def test_few_samples_fall_back_on_the_identity():
    x = rows(0, 8, 30)
    assert score(x, x + 0.01 * rows(1, 8, 30)) > 0.99


def test_none_for_a_single_sample():
    assert score(rows(0, 1, 3), rows(0, 1, 3)) is None
    assert linear_map_r2(Statistics()) is None
