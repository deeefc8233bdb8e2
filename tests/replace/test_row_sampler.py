import pytest
import torch
import torch.nn.functional as F

from shoal.replace.row_sampler import Window, extract_patches, gather_outputs, sample_grid


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("side", [(7, 9), (8, 5)])
def test_patches_times_the_weight_are_the_convolution(kernel, stride, side):
    x = torch.randn(3, 4, *side, dtype=torch.float64, generator=generator())
    weight = torch.randn(5, 4, kernel, kernel, dtype=torch.float64, generator=generator(1))
    y = F.conv2d(x, weight, stride=stride, padding=kernel // 2)
    positions = sample_grid(y.shape[2:], 6, generator(2))
    rows = extract_patches(x, positions, Window(kernel, stride))
    assert rows.shape == (3 * len(positions), 4 * kernel**2)
    torch.testing.assert_close(rows @ weight.flatten(1).T, gather_outputs(y, positions), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dilation", [2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_dilated_patches_are_those_of_a_dilated_convolution(dilation, stride):
    x = torch.randn(3, 4, 9, 8, dtype=torch.float64, generator=generator())
    weight = torch.randn(5, 4, 3, 3, dtype=torch.float64, generator=generator(1))
    y = F.conv2d(x, weight, stride=stride, padding=dilation, dilation=dilation)
    positions = sample_grid(y.shape[2:], 99, generator(2))
    rows = extract_patches(x, positions, Window(3, stride, dilation))
    torch.testing.assert_close(rows @ weight.flatten(1).T, gather_outputs(y, positions), rtol=0, atol=1e-12)


def test_positions_are_distinct_and_lie_in_the_grid():
    found = sample_grid((3, 5), 9, generator())
    assert found.shape == (9, 2)
    assert len({tuple(one) for one in found.tolist()}) == 9
    assert found[:, 0].max() < 3
    assert found[:, 1].max() < 5


def test_no_more_positions_than_there_are():
    found = sample_grid((2, 3), 100, generator())
    assert sorted(map(tuple, found.tolist())) == [(i, j) for i in range(2) for j in range(3)]


def test_picked_goes_sample_by_sample():
    y = torch.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    rows = gather_outputs(y, torch.tensor([[1, 0], [0, 1]]))
    assert rows.tolist() == [[2, 6, 10], [1, 5, 9], [14, 18, 22], [13, 17, 21]]
