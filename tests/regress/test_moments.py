import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import DataError, NonFiniteError
from shoal.regress import Moments, fits, moments, sums_device


def rows(seed, n, width, offset=0.0):
    return offset + torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments_of(x, y, **options):
    result = Moments(x.shape[1], y.shape[1], **options)
    result.add(x, y)
    return result


def assert_same(one, other):
    assert one.n == other.n
    for name in ("mean_x", "mean_y", "xx", "xy", "yy"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-10, atol=1e-8, msg=name)


@settings(deadline=None)
@given(st.integers(0, 99), st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(1, 5), st.integers(1, 4))
def test_parts_in_any_cut_are_the_whole(seed, cuts, dx, dy):
    n = sum(cuts)
    x, y = rows(seed, n, dx, 3), rows(seed + 100, n, dy, -2)
    one, merged = Moments(dx, dy), Moments(dx, dy)
    start = 0
    for count in cuts:
        part = slice(start, start := start + count)
        one.add(x[part], y[part])
        merged = merged.merged(moments_of(x[part], y[part]))
    assert_same(one, merged)
    assert one.n == n
    if n:
        centred_x, centred_y = x - x.mean(0), y - y.mean(0)
        torch.testing.assert_close(one.mean_x, x.mean(0))
        torch.testing.assert_close(one.xx, centred_x.T @ centred_x)
        torch.testing.assert_close(one.xy, centred_x.T @ centred_y)
        torch.testing.assert_close(one.yy, centred_y.T @ centred_y)


@settings(deadline=None)
@given(st.integers(0, 99), st.integers(1, 30), st.integers(1, 5), st.integers(1, 4))
def test_the_error_of_any_map_from_the_moments_alone(seed, n, dx, dy):
    x, y, weight, bias = rows(seed, n, dx, 1), rows(seed + 1, n, dy), rows(seed + 2, dy, dx), rows(seed + 3, 1, dy)[0]
    expected = (y - x @ weight.T - bias).square().sum(dim=0)
    for joint in (True, False):
        torch.testing.assert_close(moments_of(x, y, joint=joint).error(weight, bias), expected)


def test_a_large_mean_does_not_swallow_the_spread():
    x = 1e6 + rows(0, 1000, 2)
    found = Moments(2, 2)
    for part in x.split(100):
        found.add(part, part)
    exact = (x - x.mean(0)).T @ (x - x.mean(0))
    torch.testing.assert_close(found.xx, exact, rtol=1e-9, atol=1e-9)


def test_many_rows_are_cut_into_chunks(monkeypatch):
    x, y = rows(0, 50, 3, 5), rows(1, 50, 2)
    whole = moments_of(x, y)
    monkeypatch.setattr(moments, "_CHUNK", 20)
    assert_same(moments_of(x, y), whole)


def test_half_precision_rows_are_summed_in_float64():
    x = rows(0, 4000, 1).half()
    torch.testing.assert_close(moments_of(x, x).xx, moments_of(x.double(), x.double()).xx, rtol=0, atol=0)
    assert moments_of(x, x).xx.dtype == torch.float64


def test_merging_changes_neither():
    one, other = moments_of(rows(0, 5, 2), rows(1, 5, 2)), moments_of(rows(2, 4, 2), rows(3, 4, 2))
    before = one.xx.clone(), other.xx.clone()
    one.merged(other).add(rows(4, 3, 2), rows(5, 3, 2))
    assert torch.equal(one.xx, before[0])
    assert torch.equal(other.xx, before[1])
    assert (one.n, other.n) == (5, 4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_nan_and_inf_are_refused_and_nothing_is_taken_in(bad, side):
    x, y = rows(0, 5, 3), rows(1, 5, 2)
    found = moments_of(x, y)
    before = found.xx.clone()
    (x if side == "inputs" else y)[1, 1] = bad
    with pytest.raises(NonFiniteError, match=f"the {side} of a regression hold NaN or Inf: 1 of"):
        found.add(x, y)
    assert found.n == 5
    assert torch.equal(found.xx, before)


@pytest.mark.parametrize(("x", "y"), [((5, 3), (4, 2)), ((5, 2), (5, 2)), ((5, 3), (5,)), ((5, 3, 1), (5, 2))])
def test_other_shapes_are_refused(x, y):
    with pytest.raises(DataError, match="for moments of 3 inputs and 2 outputs"):
        Moments(3, 2).add(torch.zeros(x), torch.zeros(y))


def test_other_widths_are_not_merged():
    with pytest.raises(DataError, match="cannot be merged"):
        Moments(3, 2).merged(Moments(2, 2))
    with pytest.raises(DataError, match=r"\(diagonal\) cannot be merged"):
        Moments(3, 2).merged(Moments(3, 2, joint=False))
    with pytest.raises(DataError, match="at least one of each"):
        Moments(0, 2)


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("columns", [slice(0, 1), slice(1, 3), slice(0, 4)])
def test_a_part_is_what_its_outputs_alone_would_give(joint, columns):
    x, y = rows(0, 40, 3, 5), rows(1, 40, 4, -2)
    whole = moments_of(x, y, joint=joint)
    part, alone = whole.part(columns), moments_of(x, y[:, columns], joint=False)
    assert (part.inputs, part.outputs, part.n) == (3, columns.stop - columns.start, 40)
    for name in ("mean_x", "mean_y", "xx", "xy", "spread"):
        torch.testing.assert_close(getattr(part, name), getattr(alone, name), rtol=1e-10, atol=1e-10, msg=name)
    weight, bias = rows(2, part.outputs, 3), rows(3, 1, part.outputs)[0]
    torch.testing.assert_close(part.error(weight, bias), alone.error(weight, bias))
    assert part.xx.data_ptr() == whole.xx.data_ptr()
    assert part is whole if columns == slice(0, 4) else not part.joint


@pytest.mark.parametrize("joint", [True, False])
def test_about_zero_they_are_raw_sums_of_products(joint):
    x, y = rows(0, 40, 3, 5), rows(1, 40, 2, -2)
    whole = moments_of(x, y, joint=joint)
    before = whole.xx.clone()
    found = whole.about_zero()
    torch.testing.assert_close(found.xx, x.T @ x)
    torch.testing.assert_close(found.xy, x.T @ y)
    torch.testing.assert_close(found.spread, y.square().sum(dim=0))
    assert torch.equal(whole.xx, before)
    weight, none = rows(2, 2, 3), torch.zeros(2)
    torch.testing.assert_close(found.error(weight, none), (y - x @ weight.T).square().sum(dim=0))


@pytest.mark.parametrize("mean", [0.0, 1e4])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_that_are_merged_in_order_give_the_same_counts_and_fit(parts, mean):
    x, y = rows(0, 60, 5, mean), rows(1, 60, 3, mean)
    held = moments_of(rows(2, 20, 5, mean), rows(3, 20, 3, mean))
    whole, merged = moments_of(x, y), None
    for part_x, part_y in zip(x.chunk(parts), y.chunk(parts), strict=True):
        part = moments_of(part_x, part_y)
        merged = part if merged is None else merged.merged(part)
    assert merged.n == whole.n
    expected, fit = (fits(moments, held, [slice(0, 3)])[0] for moments in (whole, merged))
    assert fit.ridge == expected.ridge
    torch.testing.assert_close(fit.weight, expected.weight, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fit.bias, expected.bias, rtol=1e-9, atol=1e-9 * max(1.0, mean))


def test_sums_are_kept_on_a_gpu_where_they_are_small():
    gpu, cpu = torch.device("cuda:1"), torch.device("cpu")
    assert sums_device(gpu, 1536, 7 * 576) == gpu
    assert sums_device(gpu, 28672, 8192) == cpu  # 8.5 GB
    assert sums_device(torch.device("mps"), 8, 8) == cpu  # no float64
    assert sums_device(cpu, 8, 8) == cpu
