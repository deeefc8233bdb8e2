"""What a method gives back."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from shoal.plan import Plan


@dataclass(frozen=True)
class Made:
    """A faster network.

    Args:
        network: in eval mode.
        done: what was done to it, as plain data for the results.
        plan: rebuilds its shape from the original; None where the shapes of its weights say everything (width).
    """

    network: nn.Module
    done: dict[str, Any] = field(default_factory=dict)
    plan: Plan | None = None


class Unreached(Exception):  # noqa: N818 - not an error: a result
    """The method cannot get there; `fastest` is the smallest share of the original's latency it has reached."""

    def __init__(self, fastest: float | None, why: str) -> None:
        super().__init__(why)
        self.fastest = fastest
