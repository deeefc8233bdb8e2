import pytest

from shoal.errors import UsageError
from shoal.pipeline.goals import BudgetTarget, Cost, parse_amount

WHOLE = Cost(latency_ms=40.0, macs=2e9, params=5e6)


@pytest.mark.parametrize(
    ("given", "name", "expected"),
    [
        (0.5, "latency", 20.0),
        ("0.5", "latency", 20.0),
        (".25", "macs", 5e8),
        (1, "params", 5e6),
        ("1e-1", "params", 5e5),
        ("12ms", "latency", 12.0),
        (" 12 MS ", "latency", 12.0),
        ("0.5s", "latency", 500.0),
        ("0.5ms", "latency", 0.5),
        (12, "latency", 12.0),
        ("1.2G", "macs", 1.2e9),
        ("3M", "params", 3e6),
        ("700k", "params", 7e5),
        ("0.5k", "params", 500.0),
        (2e20, "macs", 2e20),
    ],
)
def test_a_bound_is_a_fraction_or_an_amount(given, name, expected):
    whole = {"latency": WHOLE.latency_ms, "macs": WHOLE.macs, "params": WHOLE.params}[name]
    assert parse_amount(given, whole, name) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "name", "message"),
    [
        ("half", "latency", "latency is 'half', expected a fraction or an amount"),
        ("", "macs", "macs is '', expected a fraction or an amount"),
        ("50%", "latency", "latency is '50%', expected a fraction or an amount"),
        ("-0.5", "latency", "latency is '-0.5', expected a fraction or an amount"),
        (float("nan"), "macs", "macs is 'nan', expected a fraction or an amount"),
        (float("inf"), "params", "params is 'inf', expected a fraction or an amount"),
        (0, "latency", "latency is '0', expected more than 0"),
        ("0ms", "latency", "latency is '0ms', expected more than 0"),
        ("1.2G", "latency", "latency is '1.2G', expected a fraction or a time like 12ms"),
        ("12ms", "macs", "macs is '12ms', expected a fraction or an amount like 1.2G"),
        ("3s", "params", "params is '3s', expected a fraction or an amount like 1.2G"),
    ],
)
def test_anything_else_is_refused_with_what_was_given(given, name, message):
    with pytest.raises(UsageError) as caught:
        parse_amount(given, 1.0, name)
    assert caught.value.message == message


def test_limits_are_amounts_and_infinite_where_nothing_was_asked():
    assert BudgetTarget(latency=0.5, params="3M").limits(WHOLE) == Cost(20.0, float("inf"), 3e6)
    assert BudgetTarget(macs=0.25).limits(WHOLE) == Cost(float("inf"), 5e8, float("inf"))


def test_depth_is_a_number_of_blocks():
    assert BudgetTarget(depth=0).to_dict() == {"depth": 0}
    with pytest.raises(UsageError, match="depth is -1, expected at least 0"):
        BudgetTarget(depth=-1)


@pytest.mark.parametrize("name", ["latency", "macs", "params"])
def test_what_is_no_budget_is_said_at_once(name):
    with pytest.raises(UsageError, match=f"{name} is 'half', expected a fraction or an amount"):
        BudgetTarget(**{name: "half"})


def test_as_plain_data_only_what_was_asked():
    assert BudgetTarget(latency="12ms", params=0.5).to_dict() == {"latency": "12ms", "params": 0.5}
    assert BudgetTarget().to_dict() == {}
