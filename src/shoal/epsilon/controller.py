"""Epsilon epoch by epoch: as it was chosen by hand, or held so that a share of the blocks is lost.

The paper tries one or two values of epsilon by hand. What a value takes depends on the network, the weight decay and
the length of the run; the largest responses of the branches do not depend on any guess. So a run that is asked for a
share reads epsilon off them: after each epoch it comes to lie between the branch that is the last to close next and the
one that is the first to stay open. The paper's gate, and nothing else, then decides.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from shoal.epsilon.gate import checked_epsilon
from shoal.errors import UsageError

Auto = Literal["auto"]
AUTO: Auto = "auto"
DEFAULT_SHARE = 0.3
_ABOVE_ALL = 1.25  # epsilon over the largest response of all, where every block is to close


class EpsilonSchedule(Protocol):
    """Where the trainer takes epsilon from."""

    def epsilon(self, epoch: int, largest: Mapping[str, float], num_removed: int) -> float:
        """Epsilon in `epoch`, from 0; 0 leaves all gates open.

        Args:
            epoch: the one that begins.
            largest: for each block that is still there the largest response of the last epoch; empty before the first.
            num_removed: blocks lost so far.
        """

    def num_allowed(self, num_removed: int) -> int | None:
        """How many more blocks may be lost; None for any number."""


@dataclass(frozen=True)
class EpsilonPlan:
    """Epsilon by hand: 0 (gates open) for `hold` epochs, then risen to its value within `rise` epochs.

    A later version of the paper's code holds 150 epochs on CIFAR; the paper itself has neither.
    """

    value: float
    hold: int = 0
    rise: int = 0

    def epsilon(self, epoch: int, largest: Mapping[str, float] | None = None, num_removed: int = 0) -> float:
        """Epsilon in `epoch`, from 0, whatever the responses are."""
        since = epoch - self.hold
        if since < 0:
            return 0.0
        return self.value if since >= self.rise else self.value * (since + 1) / (self.rise + 1)

    def num_allowed(self, num_removed: int) -> int | None:
        """Any number."""
        return None


@dataclass(frozen=True)
class ShareController:
    """Epsilon held so that so many blocks are lost, one after another, and no more.

    Args:
        target: blocks to be lost at the end.
        hold: epochs with open gates first, at least one: responses must have been seen.
        rise: epochs in which the number of closed blocks then rises to the target.
    """

    target: int
    hold: int
    rise: int

    @classmethod
    def within(cls, epochs: int, target: int, hold: int = 0, rise: int = 0) -> "ShareController":
        """A controller for a run.

        Args:
            epochs: that have gates.
            target: blocks to be lost.
            hold: epochs with open gates first; 0: a quarter, so that the network has learnt what it needs.
            rise: epochs until the target is reached; 0: half, so that a quarter is left to become used to it.
        """
        hold = hold or max(1, epochs // 4)
        return cls(target, hold, rise or max(0, epochs - hold - max(1, epochs // 4) - 1))

    def num_closed(self, epoch: int) -> int:
        """How many blocks are to be closed or lost in `epoch`, from 0."""
        since = epoch - max(1, self.hold)
        return math.ceil(self.target * min(1.0, (since + 1) / (self.rise + 1))) if since >= 0 else 0

    def epsilon(self, epoch: int, largest: Mapping[str, float], num_removed: int) -> float:
        """The geometric mean of two neighbouring responses: so many blocks lie below it."""
        responses = sorted(largest.values())
        count = min(self.num_closed(epoch) - num_removed, len(responses))
        if count <= 0:
            return 0.0
        if count == len(responses):
            return _ABOVE_ALL * responses[-1]
        return math.sqrt(responses[count - 1] * responses[count])

    def num_allowed(self, num_removed: int) -> int | None:
        """What is left of the target."""
        return max(0, self.target - num_removed)


def checked_share(share: float) -> float:
    """A number above 0 and below 1.

    Raises:
        UsageError: any other.
    """
    if isinstance(share, bool) or not (isinstance(share, (int, float)) and 0 < share < 1):
        raise UsageError(
            f"the share of blocks to lose is {share}, expected a number above 0 and below 1",
            "0.3 loses three blocks of ten.",
        )
    return float(share)


def read_epsilon(value: float | str) -> float | Auto:
    """A number, or `auto`.

    Raises:
        UsageError: neither.
    """
    if value == AUTO:
        return AUTO
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UsageError(
            f"epsilon is '{value}', expected a number or 'auto'", "2.5, or auto with --lose 0.3."
        ) from None
    return checked_epsilon(number)
