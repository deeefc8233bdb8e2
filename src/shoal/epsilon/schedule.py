"""How learning rate, weight decay and epsilon move over a run.

The adaptive rate is that of the paper (arXiv:1804.01661, section 1 of our notes on it): whenever a block is lost the
rate goes back to the start, and from there falls by a schedule of its own. The code of the paper counts as a loss every
epoch in which more blocks are closed than in the epoch before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.errors import UsageError

Falls = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class RatePlan:
    """The learning rate by epoch.

    Args:
        start: in the first epochs.
        falls: (epoch, rate from there on), rising epochs, while no block was lost.
        after_loss: the same, counted from the epoch after the latest loss; empty: losses change nothing.
        settle: so many last epochs fall linearly towards zero, with all gates open, so that they train the very network
            that comes out. The paper has none: its 1000 epochs leave the rate time to fall after the last loss.
    """

    start: float = 0.1
    falls: Falls = ()
    after_loss: Falls = ()
    settle: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.start < float("inf"):
            raise UsageError(f"the learning rate is {self.start}, expected a number above 0", "The paper has 0.1.")
        if self.settle < 0:
            raise UsageError(f"settle is {self.settle} epochs, expected 0 or more", "Leave it out for the recipe's.")

    def rate(self, epoch: int, epochs: int, lost_at: int | None) -> float:
        """The rate of `epoch` (from 0) of `epochs`; `lost_at` is the latest epoch before it that lost a block."""
        quiet = epochs - self.settle
        if self.settle and epoch >= quiet:
            before = self._stepped(max(0, quiet - 1), lost_at)
            return before * (epochs - epoch) / (self.settle + 1)
        return self._stepped(epoch, lost_at)

    def counts(self, epoch: int, epochs: int) -> bool:
        """Whether a loss in this epoch sends the rate back."""
        return bool(self.after_loss) and epoch < epochs - self.settle

    def _stepped(self, epoch: int, lost_at: int | None) -> float:
        if lost_at is None or not self.after_loss:
            return stepped(self.start, self.falls, epoch)
        return stepped(self.start, self.after_loss, epoch - lost_at - 1)


@dataclass(frozen=True)
class DecayPlan:
    """The weight decay by step: multiplied by `factor` every `every` steps (0: never)."""

    start: float = 2e-4
    every: int = 0
    factor: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.start < float("inf"):
            raise UsageError(f"the weight decay is {self.start}, expected a number from 0", "The paper has 2e-4.")

    def decay(self, step: int) -> float:
        """The decay at `step`, from 0."""
        return self.start * (self.factor ** (step // self.every) if self.every else 1.0)


@dataclass(frozen=True)
class EpsilonPlan:
    """Epsilon by epoch: 0 (gates open) for `hold` epochs, then risen to its value within `rise` epochs.

    A later version of the paper's code holds 150 epochs on CIFAR; the paper itself has neither.
    """

    value: float
    hold: int = 0
    rise: int = 0

    def epsilon(self, epoch: int) -> float:
        """Epsilon in `epoch`, from 0."""
        since = epoch - self.hold
        if since < 0:
            return 0.0
        return self.value if since >= self.rise else self.value * (since + 1) / (self.rise + 1)


def stepped(start: float, falls: Sequence[tuple[int, float]], epoch: int) -> float:
    """A step function: `start`, then the rate of the last fall that was reached."""
    rate = start
    for at, value in falls:
        if epoch >= at:
            rate = value
    return rate
