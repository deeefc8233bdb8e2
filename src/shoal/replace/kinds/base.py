"""The interface of a kind of replacement: what it supports, how it is described, built and fitted."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from shoal.plan import Replacement
from shoal.regress import Fit, Moments
from shoal.replace.spans import Span


@dataclass(frozen=True, eq=False)
class MomentsView:
    """What a closed form is computed from.

    Args:
        train: moments of phi, the neighbourhood of a position, and of the sums at the ends of all spans that share it.
        held_out: the same of other samples, to choose the ridge.
        columns: the outputs of this span.
        shortcut: the span's shortcut as a map on phi, (outputs, inputs); zero where the shape changes.
    """

    train: Moments
    held_out: Moments
    columns: slice
    shortcut: Tensor


@dataclass(frozen=True, eq=False)
class Solution:
    """A fitted replacement.

    Args:
        state: the parameters of its branch by name, without the shortcut.
        weight: the map that it computes including the shortcut, (outputs, inputs).
        bias: (outputs,).
        ridge: the best ridge on the held-out rows.
    """

    state: dict[str, Tensor]
    weight: Tensor
    bias: Tensor
    ridge: float


class ReplacementType(ABC):
    """One kind of replacement.

    `needs` says when it can be used, `costs` its multiply-accumulates per position, `source` where it comes from.
    """

    family: ClassVar[str]
    requirement: ClassVar[str]
    macs_note: ClassVar[str]
    source: ClassVar[str]
    kernel: int = 1
    always_shortcut: ClassVar[bool] = False
    # Whether it is a linear map with fewer parameters than there might be: of use only where those cost something.
    restricted: ClassVar[bool] = False

    def supports(self, span: Span) -> bool:
        """Whether it can replace this span."""
        return span.layout == "channels_first" or self.kernel == 1

    def spec(self, span: Span) -> Replacement:
        """The replacement for a span as plain data."""
        return Replacement(
            kind=self.family,
            layout=span.layout,
            in_channels=span.in_channels,
            out_channels=span.out_channels,
            kernel=self.kernel,
            stride=span.stride,
            dilation=span.dilation if self.kernel > 1 else 1,
            rank=self.rank(span),
            shortcut=self.always_shortcut,
            tail=span.tail,
        )

    def rank(self, span: Span) -> int | None:
        """The rank of a low-rank map for this span; None for other maps."""
        return None

    @abstractmethod
    def build(self, replacement: Replacement) -> nn.Module:
        """The branch, unfitted, without shortcut and tail."""

    @abstractmethod
    def solve(self, moments: MomentsView, fit: Fit, replacement: Replacement) -> Solution:
        """The closed form; `fit` is the ridge regression on all of phi, which most kinds start from."""
