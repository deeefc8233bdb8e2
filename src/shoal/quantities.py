"""What a network costs: one table of the quantities that a budget can bound, and how each is read and written.

A new quantity is one line of `QUANTITIES`, and a field of that name in `Cost`.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from shoal.errors import UsageError

_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_TIMES = {"": 1.0, "ms": 1.0, "s": 1e3}
_NUMBER = re.compile(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*(ms|s|k|m|g)?")


@dataclass(frozen=True)
class Cost:
    """What a module or a network costs at the batch that was timed; `latencies` at further batch sizes, in ms."""

    latency_ms: float
    macs: float
    params: float
    latencies: tuple[float, ...] = ()


@dataclass(frozen=True)
class Quantity:
    """One quantity.

    Args:
        name: of the goal's field, of the option, and of the key in JSON.
        attribute: the name of its value in `Cost`, in edges of a plan and in points of a front.
        label: in prose.
        units: the suffixes of an amount and what each stands for, in the unit of the value.
        amount: what an amount looks like, for messages.
        measured: how a value comes about: timed on a device, counted from the network, or counted from the plan.
    """

    name: str
    attribute: str
    label: str
    units: Mapping[str, float]
    amount: str
    measured: Literal["timed", "counted", "planned"]

    def parse(self, value: str | float, original: float) -> float:
        """A bound as an amount: a fraction of the original's value, or an amount with a unit.

        Raises:
            UsageError: neither.
        """
        match = _NUMBER.fullmatch(str(value).strip().lower())
        if not match:
            raise UsageError(f"{self.name} is '{value}', expected a fraction or an amount", "Like 0.5, 12ms, 1.2G, 3M.")
        number, unit = float(match.group(1)), match.group(2) or ""
        if not 0 < number < math.inf:
            expected = "more than 0" if number <= 0 else "a finite number"
            raise UsageError(f"{self.name} is '{value}', expected {expected}", "Give a fraction like 0.5.")
        if not unit and number <= 1:
            return number * original
        if unit not in self.units:
            raise UsageError(f"{self.name} is '{value}', expected a fraction or {self.amount}", "")
        return number * self.units[unit]

    def of(self, cost: Cost) -> float:
        """Its value in a cost."""
        return float(getattr(cost, self.attribute))

    def format(self, value: float) -> str:
        """An amount as a budget is written: `12ms`, `1.2G`."""
        units = {unit: size for unit, size in self.units.items() if unit} if self.units is _TIMES else self.units
        fitting = {unit: size for unit, size in units.items() if size <= value}
        unit = max(fitting, key=fitting.__getitem__) if fitting else min(units, key=units.__getitem__)
        return f"{value / units[unit]:.3g}{unit if self.units is _TIMES else unit.upper()}"


def combined(function: Callable[[Sequence[float]], float], costs: Sequence[Cost]) -> Cost:
    """A cost whose every value is that of a function of the same values of others, such as their sum.

    Costs without further latencies count as 0 in these.
    """
    further = max(len(cost.latencies) for cost in costs)
    padded = [(*cost.latencies, *[0.0] * (further - len(cost.latencies))) for cost in costs]
    values = {quantity.attribute: function([quantity.of(cost) for cost in costs]) for quantity in QUANTITIES.values()}
    return Cost(**values, latencies=tuple(map(function, zip(*padded, strict=True))))


QUANTITIES: Mapping[str, Quantity] = {
    quantity.name: quantity
    for quantity in (
        Quantity("latency", "latency_ms", "latency", _TIMES, "a time like 12ms", "timed"),
        Quantity("macs", "macs", "MACs", _COUNTS, "an amount like 1.2G", "counted"),
        Quantity("params", "params", "parameters", _COUNTS, "an amount like 1.2G", "counted"),
    )
}
