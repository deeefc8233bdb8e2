"""From numbers to places: each scale puts a value between 0 and 1, and knows the round numbers to write beside it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from shoal.report import numbers

_MOST_DECADES = 6
_MOST_LABELS = 7
# Below this ratio of largest to smallest, a plain scale shows all there is.
_SPANS_DECADES = 30.0
_GUTTER = 0.1
_FAR_BEYOND = 12.0


class Scale(Protocol):
    """Where values land, from 0 to 1, and what is written along the way."""

    def at(self, value: float) -> float:
        """The place of a value; what lies outside is put at the nearer end."""

    def labels(self) -> list[tuple[float, str]]:
        """Places and their labels."""


@dataclass(frozen=True)
class Decades:
    """A logarithmic scale over whole decades; without values it has no decades."""

    low: int
    high: int

    @property
    def exponents(self) -> list[int]:
        """The exponents to draw a line at, some four at most."""
        step = max(1, math.ceil((self.high - self.low) / 3))
        return list(range(self.high, self.low - 1, -step))

    def at(self, value: float) -> float:
        """0 at the lowest decade or below, 1 at the highest."""
        if value <= 0 or self.high == self.low:
            return 0.0
        return _clip((math.log10(value) - self.low) / (self.high - self.low))

    def labels(self) -> list[tuple[float, str]]:
        """The powers of ten."""
        if self.high == self.low:
            return []
        span = self.high - self.low
        return [((one - self.low) / span, numbers.power_of_ten(one)) for one in self.exponents]


def decades(values: Iterable[float | None]) -> Decades:
    """The scale that holds every positive finite value, six decades at most."""
    positive = [value for value in values if value is not None and 0 < value < math.inf]
    if not positive:
        return Decades(0, 0)
    high = math.ceil(math.log10(max(positive)))
    low = math.floor(math.log10(min(positive)))
    return Decades(min(max(low, high - _MOST_DECADES), high - 1), high)


@dataclass(frozen=True)
class Logarithmic:
    """A logarithmic scale between any two positive numbers, for values that move within a decade or two."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """The place of a value."""
        if value <= self.low:
            return 0.0
        return _clip(math.log(value / self.low) / math.log(self.high / self.low))

    def labels(self) -> list[tuple[float, str]]:
        """A few round numbers: 1, 2 and 5 of each power of ten, or the powers alone."""
        return [(self.at(value), _short(value)) for value in _ones_twos_fives(self.low, self.high)]


def logarithmic(values: Iterable[float | None]) -> Logarithmic:
    """The scale that holds every positive finite value, with a margin, six decades at most."""
    positive = [value for value in values if value is not None and 0 < value < math.inf] or [1.0]
    high = 1.2 * max(positive)
    return Logarithmic(max(min(positive) / 1.2, high / 10.0**_MOST_DECADES), high)


def _short(value: float) -> str:
    """A round number that still has room beside an axis where it is tiny: `0.02`, `2×10⁻⁵`."""
    if 1e-4 <= value < 1e6:
        return numbers.tick(value)
    power = math.floor(math.log10(value) + 1e-9)
    digits = f"{value / 10.0**power:.2g}"
    return numbers.power_of_ten(power) if digits == "1" else f"{digits}×{numbers.power_of_ten(power)}"


def _ones_twos_fives(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for digits in ((1, 2, 5), (1, 3), (1,)):
        every = [float(f"{digit}e{power}") for power in range(first, last + 1) for digit in digits]
        found = [value for value in every if low <= value <= high]
        if len(found) <= _MOST_LABELS:
            break
    return found if len(found) > 1 else ticks(low, high, 4)  # within a factor of two or so they may all lie outside


@dataclass(frozen=True)
class Guttered:
    """Decades, with a place of its own for what is zero or too small for them."""

    above: Decades
    label: str

    def at(self, value: float) -> float:
        """The place of a value."""
        if value < 10.0**self.above.low:
            return 0.0
        return _GUTTER + (1 - _GUTTER) * self.above.at(value)

    def labels(self) -> list[tuple[float, str]]:
        """The powers of ten, and what the gutter holds."""
        # The lowest power of ten would stand in the gutter's label; its line is the gutter's edge.
        decades = [(place, text) for place, text in self.above.labels() if place > 0]
        return [(0.0, self.label), *((_GUTTER + (1 - _GUTTER) * place, text) for place, text in decades)]


@dataclass(frozen=True)
class Linear:
    """A plain scale."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """The place of a value."""
        return _clip((value - self.low) / (self.high - self.low))

    def labels(self) -> list[tuple[float, str]]:
        """Some four round numbers."""
        return [(self.at(value), numbers.tick(value)) for value in ticks(self.low, self.high, 4)]


@dataclass(frozen=True)
class Squeezed:
    """Plain around zero, up to `unit`, and logarithmic beyond, to both sides (the inverse hyperbolic sine)."""

    low: float
    high: float
    unit: float

    def at(self, value: float) -> float:
        """The place of a value."""
        low, high = self._squeeze(self.low), self._squeeze(self.high)
        return _clip((self._squeeze(value) - low) / (high - low))

    def _squeeze(self, value: float) -> float:
        return math.copysign(math.inf, value) if math.isinf(value) else math.asinh(value / self.unit)

    def labels(self) -> list[tuple[float, str]]:
        """Zero, the unit, and round numbers beyond it."""
        sizes = [self.unit, *_round_numbers(2 * self.unit, max(abs(self.low), abs(self.high)))]
        values = [0.0, *sizes, *(-size for size in sizes)]
        return [(self.at(value), numbers.tick(value)) for value in sorted(values) if self.low <= value <= self.high]


def _round_numbers(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.floor(math.log10(high))
    steps = (1, 3) if last - first < 3 else (1,)
    every = (float(f"{step}e{power}") for power in range(first, last + 1) for step in steps)
    return [value for value in every if low <= value <= high]


def for_scores(values: Iterable[float]) -> Scale:
    """A scale for quantities of any kind: logarithmic where the positive ones span decades, else plain."""
    finite = [value for value in values if math.isfinite(value)]
    positive = [value for value in finite if value > 0]
    if min(finite, default=0.0) >= 0 and positive and _spread(finite, positive):
        scale = decades(positive)
        small = [value for value in finite if value < 10.0**scale.low]
        if not small:
            return scale
        return Guttered(scale, f"< {numbers.power_of_ten(scale.low)}" if any(small) else "0")
    return _padded(min(finite, default=0.0), max(finite, default=1.0))


def _spread(finite: list[float], positive: list[float]) -> bool:
    return max(positive) / min(positive) >= _SPANS_DECADES


def for_differences(ends: Iterable[float], tolerance: float) -> Scale:
    """A scale for differences around zero: the tolerance stays readable, however large the largest difference.

    Args:
        ends: of all intervals; infinite ones do not stretch the scale.
        tolerance: in the same unit.
    """
    finite = [0.0, 1.6 * tolerance, -1.6 * tolerance, *(end for end in ends if math.isfinite(end))]
    low, high = min(finite), max(finite)
    if max(-low, high) <= _FAR_BEYOND * tolerance:
        return _padded(low, high)
    return Squeezed(1.15 * low, 1.15 * high, tolerance)


def _padded(low: float, high: float) -> Linear:
    margin = 0.05 * (high - low) or max(abs(high), 1.0)
    return Linear(low - margin, high + margin)


def _clip(place: float) -> float:
    return min(1.0, max(0.0, place))


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from `low` to `high`, some `about` of them."""
    rough = (high - low) / max(about, 1)
    if rough <= 0 or not math.isfinite(rough):
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    # 0.30000000000000004 is no label, and a tiny remainder would not count as zero
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]
