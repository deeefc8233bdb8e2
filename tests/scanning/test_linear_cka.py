import pytest
import torch

from shoal.scanning.scores.linear_cka import linear_cka
from shoal.scanning.scores.statistics import Statistics


def cka(x, y):
    seen = Statistics()
    seen.see_rows(x.double(), y.double(), torch.arange(len(x)) % 2 == 1)
    return linear_cka(seen)


def rows(seed, n, width):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_the_formula_with_kernels():
    x, y = rows(0, 40, 5), rows(1, 40, 3)
    y += x[:, :3]
    centring = torch.eye(40, dtype=torch.float64) - 1 / 40
    kernel, other = centring @ x @ x.T @ centring, centring @ y @ y.T @ centring
    expected = (kernel * other).sum() / (kernel.norm() * other.norm())
    assert cka(x, y) == pytest.approx(float(expected), rel=1e-10)


def test_one_for_the_same_up_to_rotation_scale_and_offset():
    x = rows(0, 30, 6) + 10
    rotation, _ = torch.linalg.qr(rows(1, 6, 6))
    assert cka(x, x) == pytest.approx(1.0, abs=1e-12)
    assert cka(x, 0.1 * x @ rotation - 3) == pytest.approx(1.0, abs=1e-9)


def test_near_zero_for_independent_rows_and_none_for_constant_ones():
    assert cka(rows(0, 20000, 4), rows(1, 20000, 4)) < 0.01
    assert cka(rows(0, 9, 2), torch.zeros(9, 2)) is None
    assert linear_cka(Statistics()) is None
