"""Formats every number of the reports; percentages exist only here.

A missing or non-finite number becomes a dash, so that no `None` and no `nan` ever reaches a reader.
"""

import math
from collections.abc import Sequence

from shoal.record import Interval

MISSING = "–"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def known(value: float | None) -> bool:
    """Whether there is a finite number to show."""
    return value is not None and math.isfinite(value)


def percent(fraction: float | None) -> str:
    """`0.9875` as `98.8 %`; a value that is not quite 0 or 100 is never rounded to it."""
    if fraction is None or not math.isfinite(fraction):
        return MISSING
    return f"{_percent_digits(fraction)} %"


def percent_interval(interval: Interval | None) -> str:
    """`(0.972, 0.991)` as `97.2 – 99.1 %`."""
    if interval is None or not all(map(math.isfinite, interval)):
        return MISSING
    return f"{_percent_digits(interval[0])} – {_percent_digits(interval[1])} %"


def _percent_digits(fraction: float) -> str:
    for digits in (1, 2, 3):
        text = f"{100 * fraction:.{digits}f}"
        if fraction in (0.0, 1.0) or float(text) not in (0.0, 100.0):
            return text
    return text


def share_tick(fraction: float) -> str:
    """A round share on an axis: `0.4` as `40 %`."""
    return f"{tick(100 * fraction)} %"


def deviation(predicted: float | None, measured: float | None) -> str:
    """The relative error of a prediction: `+1.7 %`, `−0.4 %`."""
    if predicted is None or measured is None or not (known(predicted) and known(measured)) or predicted <= 0:
        return MISSING
    off = (measured - predicted) / predicted
    return f"{'+' if off > 0 else '−' if off < 0 else ''}{percent(abs(off))}"


def points(drop: float | None) -> str:
    """A drop as a fraction, with its sign in words: `lost 0.25 points`."""
    if drop is None or not math.isfinite(drop):
        return MISSING
    if drop == 0:
        return "unchanged"
    word = "lost" if drop > 0 else "gained"
    return f"{word} {_point_digits(drop)} points"


def points_interval(interval: Interval | None) -> str:
    """An interval of drops: `0.88 gained to 1.40 lost`."""
    if interval is None or not all(map(math.isfinite, interval)):
        return MISSING
    return f"{_point_end(interval[0])} to {_point_end(interval[1])}"


def _point_end(drop: float) -> str:
    if drop == 0:
        return "0"
    return f"{_point_digits(drop)} {'lost' if drop > 0 else 'gained'}"


def _point_digits(drop: float) -> str:
    size = 100 * abs(drop)
    return f"{size:.2f}" if size >= 0.01 else "less than 0.01"


def lost(drop: float | None) -> str:
    """A drop as a bare number for a column in points; a gain is negative: `0.25`, `−1.00`."""
    if drop is None or not math.isfinite(drop):
        return MISSING
    return "0" if drop == 0 else _minus(f"{100 * drop:.2f}")


def lost_interval(interval: Interval | None) -> str:
    """An interval of drops as bare numbers in points: `−0.88 to 1.40`."""
    if interval is None or not all(map(math.isfinite, interval)):
        return MISSING
    return f"{lost(interval[0])} to {lost(interval[1])}"


def signed(number: float | None, digits: int = 2) -> str:
    """A correlation: `0.97`, `−0.17`."""
    return MISSING if number is None or not math.isfinite(number) else _minus(f"{number:.{digits}f}")


def signed_interval(interval: Interval | None) -> str:
    """An interval of correlations: `0.92 to 0.99`."""
    if interval is None or not all(map(math.isfinite, interval)):
        return MISSING
    return f"{signed(interval[0])} to {signed(interval[1])}"


def count(number: int | None) -> str:
    """An integer with thousands separators."""
    return MISSING if number is None else f"{number:,}"


def amount(number: float | None) -> str:
    """Parameters or MACs with an SI prefix and at least three digits: `1.23 M`, `125.8 M`, `942`."""
    if number is None or not math.isfinite(number):
        return MISSING
    for size, prefix in _PREFIXES:
        # 999,960 is 1.00 M and not 1000.0 k
        if abs(number) >= size * 0.99995:
            scaled = number / size
            digits = 2 if abs(scaled) < 9.995 else 1
            return f"{scaled:.{digits}f} {prefix}"
    return f"{number:.0f}"


def storage(size: float | None) -> str:
    """A size on disk in decimal units: `3.41 MB`."""
    text = amount(size)
    if text == MISSING:
        return text
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def significant(number: float | None, digits: int = 3) -> str:
    """A positive or negative quantity with `digits` significant digits, powers of ten when tiny or huge."""
    if number is None or not math.isfinite(number):
        return MISSING
    if number == 0:
        return "0"
    mantissa, power = f"{number:.{digits - 1}e}".split("e")
    exponent = int(power)
    if exponent < -4 or exponent > 8:
        return f"{_minus(mantissa)} × {power_of_ten(exponent)}"
    decimals = max(0, digits - 1 - exponent)
    return _minus(f"{number:,.{decimals}f}")


def significant_interval(interval: Interval | None, digits: int = 2) -> str:
    """An interval of plain quantities: `0.011 – 0.019`; `to` where a minus sign would look like the dash."""
    if interval is None or not all(map(math.isfinite, interval)):
        return MISSING
    low, high = (significant(end, digits) for end in interval)
    return f"{low} to {high}" if min(interval) < 0 else f"{low} – {high}"


def more(increase: float | None) -> str:
    """A rise or fall of a quantity, with its sign in words: `0.0312 more`, `unchanged`."""
    if increase is None or not math.isfinite(increase):
        return MISSING
    if increase == 0:
        return "unchanged"
    return f"{significant(abs(increase))} {'more' if increase > 0 else 'less'}"


def exp(value: float) -> float:
    """The exponential function; infinite instead of an overflow."""
    return math.exp(value) if value < 700 else math.inf


def tick(value: float) -> str:
    """A round number on an axis, as short as it can be: `0.04`, `−1`, `200`, `2×10⁻⁵`."""
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        return _minus(f"{value:,.6g}")
    power = math.floor(math.log10(abs(value)) + 1e-9)
    digits = f"{value / 10.0**power:.3g}"
    return power_of_ten(power) if digits == "1" else f"{_minus(digits)}×{power_of_ten(power)}"


def power_of_ten(exponent: int) -> str:
    """`-4` as `10⁻⁴`, `0` as `1`."""
    return f"10{str(exponent).translate(_SUPERSCRIPT)}" if exponent else "1"


def _minus(text: str) -> str:
    return text.replace("-", "−")


def milliseconds(value: float | None) -> str:
    """`4.213` as `4.21 ms`."""
    return MISSING if not known(value) else f"{significant(value)} ms"


def duration(seconds: float | None) -> str:
    """Seconds in readable units: `48.2 s`, `3 min 12 s`, `2 h 5 min`."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 59.5:
        return f"{significant(seconds)} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def probability(p: float | None) -> str:
    """A p-value: `0.62`, `< 0.001`."""
    if p is None or not math.isfinite(p):
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.{3 if p < 0.095 else 2}f}"


def shape(sizes: Sequence[int]) -> str:
    """`[16, 32, 32]` as `16 × 32 × 32`."""
    return " × ".join(str(size) for size in sizes) if sizes else MISSING


def less(before: float, after: float) -> str:
    """The relative reduction of a cost: `51.9 % less`, `unchanged`."""
    if before == after:
        return "unchanged"
    if not before or not all(map(math.isfinite, (before, after))):
        return MISSING
    saved = (before - after) / before
    return f"{percent(abs(saved))} {'less' if saved > 0 else 'more'}"


def ratio(value: float) -> str:
    """A factor with two to three digits: `1.91`, `12.3`."""
    return f"{value:.2f}" if value < 9.995 else f"{value:,.1f}"
