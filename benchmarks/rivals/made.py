"""What a method returns."""

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
        small: it is not made of the original but has the architecture of `Ground.small`.
    """

    network: nn.Module
    done: dict[str, Any] = field(default_factory=dict)
    plan: Plan | None = None
    small: bool = False


class Unreached(Exception):  # noqa: N818 - not an error: a result
    """The method cannot get there; `fastest` is the smallest share of the original's latency it has reached."""

    def __init__(self, fastest: float | None, reason: str) -> None:
        super().__init__(reason)
        self.fastest = fastest
