"""How long recovery may go on: so many steps, or so much time."""

import re
from dataclasses import dataclass

from shoal.errors import UsageError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_HOW = "Give a time (90s, 10m, 2h), a number of steps (2000), or none."


@dataclass(frozen=True)
class TrainingBudget:
    """Steps, or seconds; exactly one of them.

    A number of steps gives the same network on the same machine every time; a time does not.
    """

    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise UsageError("a budget is a number of steps or a time, one of the two", _HOW)
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"a budget of {self.steps} steps is too short for one step", _HOW)
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise UsageError(f"a budget of {self.seconds} seconds is too short for one step", _HOW)

    def spent(self, steps: int, seconds: float) -> float:
        """How much of it is used up, from 0; 1 is all of it."""
        if self.steps is not None:
            return steps / self.steps
        return seconds / (self.seconds or 1.0)

    def part(self, share: float) -> "TrainingBudget":
        """A share of it, at least one step."""
        if self.steps is not None:
            return TrainingBudget(steps=max(1, round(share * self.steps)))
        return TrainingBudget(seconds=share * (self.seconds or 1.0))

    def done_of(self, steps: int, seconds: float) -> tuple[str, int, int]:
        """The unit, how many of them are done, and of how many, for a progress bar."""
        if self.steps is not None:
            return "steps", steps, self.steps
        whole = max(1, round(self.seconds or 1.0))
        return "seconds", min(whole, int(seconds)), whole

    def __str__(self) -> str:
        if self.steps is not None:
            return f"{self.steps} steps"
        return f"{self.seconds:g} seconds"


def read_budget(text: str | int | TrainingBudget | None) -> TrainingBudget | None:
    """`10m`, `90s`, `2h`, `2000` as a budget; `none` and None as no recovery.

    Raises:
        UsageError: something else, or nothing left of it.
    """
    if text is None or isinstance(text, TrainingBudget):
        return text
    plain = str(text).strip().lower()
    if plain == "none":
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])?", plain)
    if found is None:
        raise UsageError(f"the budget of recovery is '{text}', expected steps or a time", _HOW)
    number, unit = found.groups()
    if unit:
        return TrainingBudget(seconds=float(number) * _UNITS[unit])
    if "." in number:
        raise UsageError(f"the budget of recovery is '{text}': there is no part of a step", _HOW)
    return TrainingBudget(steps=int(number))
