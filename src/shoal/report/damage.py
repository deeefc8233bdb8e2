"""What damage is in a record: the quantity and its unit, which depend on how the outputs were read."""

from dataclasses import dataclass

from shoal.record import OutputsRead
from shoal.report import numbers


@dataclass(frozen=True)
class Damage:
    """How a page words damage.

    Args:
        quantity: in full.
        axis: the same, short enough for a plot.
        unit: behind a figure; empty for a number without one.
    """

    quantity: str
    axis: str
    unit: str = ""

    @property
    def heading(self) -> str:
        """Of a column."""
        return f"Damage, {self.unit}" if self.unit else "Damage"

    def figure(self, value: float | None) -> str:
        """A value with its unit."""
        shown = numbers.significant(value)
        return f"{shown} {self.unit}" if self.unit and shown != numbers.MISSING else shown


KL = Damage("mean KL(original ‖ network) in nats", "mean KL, nats", "nats")
_KNOWN = {
    "KL(original || network) in nats": KL,
    "mean squared error relative to the variance of the original's output": Damage(
        "mean squared error, as a share of the variance of the original's output", "mean squared error / variance"
    ),
    "one minus the cosine with the original's output": Damage(
        "mean of one minus the cosine with the original's output", "one minus the cosine"
    ),
    "share of elements that differ from the original's": Damage(
        "share of elements that differ from the original's", "share of elements that differ"
    ),
}


def damage_of(outputs: OutputsRead | None) -> Damage:
    """Damage in a record; one that does not say how outputs were read is of a classifier."""
    if outputs is None:
        return KL
    return _KNOWN.get(outputs.damage, Damage(outputs.damage, "damage"))
