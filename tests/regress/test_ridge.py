import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shoal.errors import DataError, NonFiniteError, UsageError
from shoal.regress import Moments, fit, fits, r2, ridge, solve


def rows(seed, n, width, offset=0.0):
    return offset + torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments_of(x, y, **options):
    result = Moments(x.shape[1], y.shape[1], **options)
    for start in range(0, len(x), 7):
        result.add(x[start : start + 7], y[start : start + 7])
    return result


def least_squares(x, y, penalty=0.0, target=None):
    """The textbook way: rows stacked with sqrt(penalty) I, the bias a column of ones of no penalty."""
    goal = torch.zeros(y.shape[1], x.shape[1], dtype=torch.float64) if target is None else target
    width = x.shape[1]
    design = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    loading = torch.cat([penalty**0.5 * torch.eye(width), torch.zeros(width, 1)], dim=1).double()
    wanted = torch.cat([y - x @ goal.T, torch.zeros(width, y.shape[1], dtype=torch.float64)])
    found = torch.linalg.lstsq(torch.cat([design, loading]), wanted, driver="gelsd").solution
    return found[:-1].T + goal, found[-1]


@settings(deadline=None)
@given(
    st.integers(0, 999),
    st.integers(1, 40),
    st.integers(1, 6),
    st.integers(1, 4),
    st.sampled_from([1e-6, 1e-3, 0.1, 1.0]),
    st.booleans(),
)
def test_it_is_the_ridge_regression_of_the_rows(seed, n, dx, dy, lam, shrinks):
    x, y = rows(seed, n, dx, 2), rows(seed + 1, n, dy, -1)
    target = rows(seed + 2, dy, dx) if shrinks else None
    penalty = lam * float((x - x.mean(0)).square().sum()) / dx
    weight, bias = solve(moments_of(x, y), lam, target)
    if n == 1:  # no spread, no penalty: everything stays with the target
        expected = target if target is not None else torch.zeros(dy, dx, dtype=torch.float64)
        torch.testing.assert_close(weight, expected)
        torch.testing.assert_close(x @ weight.T + bias, y)
        return
    expected_weight, expected_bias = least_squares(x, y, penalty, target)
    torch.testing.assert_close(weight, expected_weight, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(bias, expected_bias, rtol=1e-6, atol=1e-6)


@settings(deadline=None)
@example(506, 6, 6, 1, False)  # rounding leaves a singular Gram matrix a last pivot of 1e-11
@given(st.integers(0, 999), st.integers(2, 12), st.integers(1, 20), st.integers(1, 3), st.booleans())
def test_without_a_ridge_it_is_least_squares_nearest_to_the_target(seed, n, dx, dy, shrinks):
    x, y = rows(seed, n, dx), rows(seed + 1, n, dy)
    target = rows(seed + 2, dy, dx) if shrinks else torch.zeros(dy, dx, dtype=torch.float64)
    weight, bias = solve(moments_of(x, y), 0.0, target if shrinks else None)
    # Minimum norm with a free bias: that of the centred rows.
    centred_x, centred_y = x - x.mean(0), y - y.mean(0)
    wanted = centred_y - centred_x @ target.T
    spectrum = torch.linalg.svdvals(centred_x)
    if spectrum[min(n - 1, dx) - 1] < 1e-2 * spectrum[0]:
        return  # ill-conditioned by chance: the normal equations have only half the digits
    change = torch.linalg.lstsq(centred_x, wanted, rcond=1e-6, driver="gelsd").solution.T
    torch.testing.assert_close(weight, target + change, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(bias, y.mean(0) - weight @ x.mean(0))


@settings(deadline=None)
@given(st.integers(0, 999), st.integers(1, 6), st.integers(1, 4))
def test_a_linear_map_is_recovered_exactly(seed, dx, dy):
    x = rows(seed, 60, dx, 1)
    weight, bias = rows(seed + 1, dy, dx), rows(seed + 2, 1, dy)[0]
    y = x @ weight.T + bias
    found = fit(moments_of(x[:30], y[:30]), moments_of(x[30:], y[30:]))
    torch.testing.assert_close(found.weight, weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.bias, bias, rtol=1e-6, atol=1e-6)
    assert found.r2_fit > 1 - 1e-9
    assert found.r2_held_out > 1 - 1e-9
    assert found.ridge < 1e-5


def test_errors_are_those_of_the_rows():
    x, y = rows(0, 200, 5), rows(1, 200, 3)
    y += x @ rows(2, 5, 3)
    found = fit(moments_of(x[:100], y[:100]), moments_of(x[100:], y[100:]))
    for part, value in ((slice(0, 100), found.r2_fit), (slice(100, 200), found.r2_held_out)):
        rest = (y[part] - x[part] @ found.weight.T - found.bias).square().sum()
        total = (y[part] - y[part].mean(0)).square().sum()
        assert value == pytest.approx(float(1 - rest / total), rel=1e-10)
    assert 0.5 < found.r2_held_out < 1


def test_the_ridge_is_the_best_on_the_held_out_rows():
    x = rows(0, 40, 30)
    y = x @ rows(1, 30, 2) * 0.2 + rows(2, 40, 2)
    train, held_out = moments_of(x[:25], y[:25]), moments_of(x[25:], y[25:])
    found = fit(train, held_out)
    errors = {one: float(held_out.error(*solve(train, one)).sum()) for one in ridge.RIDGES}
    assert found.ridge == min(errors, key=errors.get)
    assert 0 < found.ridge < max(errors)


def test_of_equally_good_ridges_the_largest_is_taken():
    x = rows(0, 20, 3)
    flat = torch.full((20, 2), 4.0, dtype=torch.float64)
    found = fit(moments_of(x[:10], flat[:10]), moments_of(x[10:], flat[10:]), ridges=(0.5, 2.0, 0.0))
    assert found.ridge == 2.0
    assert torch.equal(found.weight, torch.zeros(2, 3, dtype=torch.float64))
    assert (found.r2_fit, found.r2_held_out) == (1.0, 1.0)


def test_a_strong_ridge_ends_at_the_target_and_few_rows_stay_near_it():
    x, noise = rows(0, 12, 20), rows(1, 12, 20)
    y = x + 0.01 * noise
    train, held_out = moments_of(x[:6], y[:6]), moments_of(x[6:], y[6:])
    towards = fit(train, held_out, target=torch.eye(20))
    assert towards.r2_held_out > 0.99
    assert fit(train, held_out).r2_held_out < 0.6
    torch.testing.assert_close(solve(train, 1e9, torch.eye(20))[0], torch.eye(20, dtype=torch.float64))


def test_constant_and_repeated_features():
    x = rows(0, 50, 3)
    wide = torch.cat([x, torch.full((50, 1), 7.0), x[:, :1], 0 * x[:, :1]], dim=1)
    y = x @ rows(1, 3, 2)
    for lam in (0.0, 1e-8):
        weight, bias = solve(moments_of(wide, y), lam)
        torch.testing.assert_close(wide @ weight.T + bias, y, rtol=1e-5, atol=1e-5)
        assert weight[:, 3].abs().max() == 0
        torch.testing.assert_close(weight[:, 0], weight[:, 4], rtol=1e-5, atol=1e-5)
    weight, bias = solve(moments_of(torch.full((9, 2), 0.1), y[:9]), 0.1)
    assert weight.abs().max() < 1e-9
    torch.testing.assert_close(bias, y[:9].mean(0))


@pytest.mark.parametrize("seed", range(8))
def test_a_dependent_feature_is_seen_behind_one_of_little_variance(seed):
    a, y = rows(seed, 50, 1), rows(seed + 100, 50, 1)
    x = torch.cat([1e-4 * a / 3, a, a / 7], dim=1)
    weight, _ = solve(moments_of(x, y), 0.0)
    nearest = torch.linalg.lstsq(x - x.mean(0), y - y.mean(0), rcond=1e-6, driver="gelsd").solution.T
    torch.testing.assert_close(weight, nearest, rtol=1e-5, atol=1e-7)


def test_r2_of_a_constant_output():
    x, flat = rows(0, 10, 2), torch.full((10, 1), 0.1, dtype=torch.float64)
    moments, zero = moments_of(x, flat), torch.zeros(1, 2)
    assert r2(moments, zero, torch.tensor([0.1], dtype=torch.float64)) == 1.0
    assert r2(moments, zero, torch.tensor([0.2], dtype=torch.float64)) == 0.0


def test_one_row():
    x, y = rows(0, 1, 4), rows(1, 1, 4)
    found = fit(moments_of(x, y), moments_of(x, y), target=torch.eye(4))
    assert torch.equal(found.weight, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(x @ found.weight.T + found.bias, y)


@pytest.mark.parametrize("joint", [True, False])
def test_each_end_gets_the_fit_it_would_get_alone(joint):
    x = rows(0, 60, 25)
    easy, hard = x @ rows(1, 25, 3), 0.3 * x @ rows(2, 25, 2) + 3 * rows(3, 60, 2)
    y, ends = torch.cat([easy, hard], dim=1), [slice(0, 3), slice(3, 5)]
    target = rows(4, 5, 25)
    together = fits(
        moments_of(x[:40], y[:40], joint=joint), moments_of(x[40:], y[40:], joint=joint), ends, target=target
    )
    assert together[0].ridge < together[1].ridge
    for found, end in zip(together, ends, strict=True):
        alone = fit(moments_of(x[:40], y[:40, end]), moments_of(x[40:], y[40:, end]), target=target[end])
        assert found.ridge == alone.ridge
        torch.testing.assert_close(found.weight, alone.weight)
        assert found.r2_held_out == pytest.approx(alone.r2_held_out)
        assert found.r2_fit == pytest.approx(alone.r2_fit)


def test_no_rows_nan_and_bad_options_are_refused():
    some = moments_of(rows(0, 9, 3), rows(1, 9, 2))
    with pytest.raises(DataError, match="without rows"):
        fit(some, Moments(3, 2))
    with pytest.raises(DataError, match="without rows"):
        solve(Moments(3, 2), 0.1)
    with pytest.raises(DataError, match="3 inputs and 2 outputs to fit, 2 and 2 held out"):
        fit(some, moments_of(rows(0, 9, 2), rows(1, 9, 2)))
    with pytest.raises(DataError, match=r"a target of shape \(3, 2\)"):
        fit(some, some, target=torch.zeros(3, 2))
    with pytest.raises(NonFiniteError, match="target"):
        fit(some, some, target=torch.full((2, 3), float("nan")))
    for ridges in ((), (-1.0,), (float("nan"),)):
        with pytest.raises(UsageError, match="Expected at least one finite number"):
            fit(some, some, ridges=ridges)
    huge = moments_of(1e200 * rows(0, 9, 3), rows(1, 9, 2))
    with pytest.raises(NonFiniteError, match="too large to be squared"):
        fit(huge, huge)


def test_of_many_outputs_the_ridge_is_the_best_of_all_by_a_few_sums_of_them(monkeypatch):
    """Two groups of outputs, one that a map explains and one of noise: each has the ridge of a full search."""
    x = rows(0, 60, 20)
    clean, noise = x @ rows(1, 20, 140) + 0.3 * rows(2, 60, 140), rows(3, 60, 140)
    y, ends = torch.cat([clean, noise], 1), [slice(0, 140), slice(140, 280)]
    train, held_out = moments_of(x[:30], y[:30]), moments_of(x[30:], y[30:])
    for goal in (None, rows(4, 280, 20)):
        sketched = fits(train, held_out, ends, target=goal)
        with monkeypatch.context() as patch:
            patch.setattr("shoal.regress.ridge._SKETCHED", 1000)
            exact = fits(train, held_out, ends, target=goal)
        assert [each.ridge for each in sketched] == [each.ridge for each in exact]
        assert len({each.ridge for each in exact}) == 2
        for each, other in zip(sketched, exact, strict=True):
            torch.testing.assert_close(each.weight, other.weight)
            torch.testing.assert_close(each.bias, other.bias)
            assert each.r2_held_out == pytest.approx(other.r2_held_out)
