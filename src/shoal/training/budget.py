"""How long a training may take: a number of steps, or a time."""

import re
from dataclasses import dataclass

from shoal.arguments import real_number, whole_number
from shoal.errors import UsageError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_HINT = "Give a time (90s, 10m, 2h), a number of steps (2000), or none."


@dataclass(frozen=True)
class TrainingBudget:
    """Steps, or seconds; exactly one of them.

    A number of steps gives the same network on the same machine every time; a time does not.
    """

    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise UsageError("a budget is either a number of steps or a time", _HINT)
        if self.steps is not None and whole_number("the budget", self.steps, -(2**62), _HINT) < 1:
            raise UsageError(f"a budget of {self.steps} steps is too short for one step", _HINT)
        if self.seconds is not None and not 0 < real_number("the budget", self.seconds, _HINT) < float("inf"):
            raise UsageError(f"a budget of {self.seconds} seconds is too short for one step", _HINT)

    def spent(self, steps: int, seconds: float) -> float:
        """The share that is used up; 1 is all of it."""
        if self.steps is not None:
            return steps / self.steps
        return seconds / (self.seconds or 1.0)

    def part(self, share: float) -> "TrainingBudget":
        """This share of it, at least one step."""
        if self.steps is not None:
            return TrainingBudget(steps=max(1, round(share * self.steps)))
        return TrainingBudget(seconds=share * (self.seconds or 1.0))

    def progress(self, steps: int, seconds: float) -> tuple[str, int, int]:
        """The unit, how many are done and how many there are, for a progress bar."""
        if self.steps is not None:
            return "steps", steps, self.steps
        total = max(1, round(self.seconds or 1.0))
        return "seconds", min(total, int(seconds)), total

    def __str__(self) -> str:
        if self.steps is not None:
            return f"{self.steps} steps"
        return f"{self.seconds:g} seconds"


def read_budget(text: str | int | TrainingBudget | None) -> TrainingBudget | None:
    """`10m`, `90s`, `2h`, `2000` as a budget; `none` and None as no recovery.

    Raises:
        UsageError: neither a time nor a number of steps, or less than one step.
    """
    if text is None or isinstance(text, TrainingBudget):
        return text
    plain = str(text).strip().lower()
    if plain == "none":
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])?", plain)
    if match is None:
        raise UsageError(f"the budget of recovery is '{text}', expected steps or a time", _HINT)
    number, unit = match.groups()
    if unit:
        return TrainingBudget(seconds=float(number) * _UNITS[unit])
    if "." in number:
        raise UsageError(f"the budget of recovery is '{text}': there is no part of a step", _HINT)
    return TrainingBudget(steps=int(number))
