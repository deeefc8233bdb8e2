"""What a budget is: a bound on latency, MACs or parameters, as a fraction of the original or an amount."""

import re
from dataclasses import dataclass

from shoal.errors import UsageError

_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9, "": 1.0}


@dataclass(frozen=True)
class Cost:
    """What one module or network costs at the batch that was timed."""

    latency_ms: float
    macs: float
    params: float


@dataclass(frozen=True)
class BudgetTarget:
    """Upper bounds as the user gave them: a fraction of the original or an amount ('12ms', '1.2G', '3M').

    `depth` is a number of blocks; a stand-in counts as one.
    """

    latency: str | float | None = None
    macs: str | float | None = None
    params: str | float | None = None
    depth: int | None = None

    def __post_init__(self) -> None:
        if self.depth is not None and self.depth < 0:
            raise UsageError(f"depth is {self.depth}, expected at least 0", "It is the number of blocks to be left.")
        self.limits(Cost(1.0, 1.0, 1.0))  # what is no budget is said before anything is measured

    def limits(self, whole: Cost) -> Cost:
        """The bounds as amounts; infinite where there is none.

        Raises:
            UsageError: not a fraction and not an amount.
        """
        unbounded = float("inf")
        return Cost(
            parse_amount(self.latency, whole.latency_ms, "latency") if self.latency is not None else unbounded,
            parse_amount(self.macs, whole.macs, "macs") if self.macs is not None else unbounded,
            parse_amount(self.params, whole.params, "params") if self.params is not None else unbounded,
        )

    def to_dict(self) -> dict[str, str | float]:
        """Only what was asked."""
        asked = {"latency": self.latency, "macs": self.macs, "params": self.params, "depth": self.depth}
        return {key: value for key, value in asked.items() if value is not None}


def parse_amount(given: str | float, whole: float, name: str) -> float:
    """What a bound means: a fraction of `whole`, or an amount with a unit.

    Raises:
        UsageError: neither.
    """
    text = str(given).strip().lower()
    found = re.fullmatch(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*(ms|s|k|m|g)?", text)
    if not found:
        raise UsageError(f"{name} is '{given}', expected a fraction or an amount", "Like 0.5, 12ms, 1.2G, 3M.")
    number, unit = float(found.group(1)), found.group(2) or ""
    if number <= 0:
        raise UsageError(f"{name} is '{given}', expected more than 0", "Give a fraction like 0.5.")
    if not unit and number <= 1:
        return number * whole
    if name == "latency":
        if unit not in ("ms", "s", ""):
            raise UsageError(f"latency is '{given}', expected a fraction or a time like 12ms", "")
        return number * (1000.0 if unit == "s" else 1.0)
    if unit in ("ms", "s"):
        raise UsageError(f"{name} is '{given}', expected a fraction or an amount like 1.2G", "")
    return number * _UNITS[unit]
