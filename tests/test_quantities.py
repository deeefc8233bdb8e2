import pytest

from shoal.errors import UsageError
from shoal.quantities import QUANTITIES, Cost

ORIGINAL = Cost(latency_ms=40.0, macs=2e9, params=5e6)


@pytest.mark.parametrize(
    ("value", "name", "expected"),
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
def test_a_bound_is_a_fraction_or_an_amount(value, name, expected):
    quantity = QUANTITIES[name]
    assert quantity.parse(value, quantity.of(ORIGINAL)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "name", "message"),
    [
        ("1e400", "macs", "macs is '1e400', expected a finite number"),
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
def test_anything_else_is_refused_with_what_was_given(value, name, message):
    with pytest.raises(UsageError) as caught:
        QUANTITIES[name].parse(value, 1.0)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("latency", 12.0, "12ms"),
        ("latency", 0.25, "0.25ms"),
        ("latency", 2500.0, "2.5s"),
        ("macs", 1.2e9, "1.2G"),
        ("params", 942.0, "942"),
        ("params", 3e6, "3M"),
    ],
)
def test_what_is_written_reads_back(name, value, expected):
    assert QUANTITIES[name].format(value) == expected
    assert QUANTITIES[name].parse(expected, 0.0) == pytest.approx(value)
