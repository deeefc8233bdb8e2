"""What every kind of stand-in says of itself and does: one interface for all of them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from shoal.plan import Replacement
from shoal.regress import Fit, Moments
from shoal.replace.spans import Span

KindName = Literal["identity", "scale", "linear", "conv", "lowrank"]


@dataclass(frozen=True, eq=False)
class MomentsView:
    """What a closed form is computed from: moments of the rows to fit and of those held out.

    Args:
        train: of phi, the neighbourhood of a position, and the sums at the ends of every span that shares it.
        held_out: of other samples, to choose the ridge.
        columns: which outputs are this span's.
        shortcut: the span's shortcut as a map on phi, (outputs, inputs); zero where the shape changes.
    """

    train: Moments
    held_out: Moments
    columns: slice
    shortcut: Tensor


@dataclass(frozen=True, eq=False)
class Solution:
    """A fitted stand-in.

    Args:
        state: its parameters by name, without the shortcut if the stand-in carries one.
        weight: the map it computes in all, (outputs, inputs), shortcut included.
        bias: (outputs,).
        ridge: the ridge that did best on the held-out rows.
    """

    state: dict[str, Tensor]
    weight: Tensor
    bias: Tensor
    ridge: float


class ReplacementType(ABC):
    """One kind of stand-in.

    `needs` says when it can be used, `costs` its multiply-accumulates per position, `source` where it comes from.
    """

    family: ClassVar[KindName]
    needs: ClassVar[str]
    costs: ClassVar[str]
    source: ClassVar[str]
    kernel: int = 1
    always_shortcut: ClassVar[bool] = False

    def suits(self, span: Span) -> bool:
        """Whether it can stand in for this span."""
        return span.layout == "channels_first" or self.kernel == 1

    def describe(self, span: Span) -> Replacement:
        """It as plain data, for one span."""
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
        """Of a low-rank map, for this span."""
        return None

    @abstractmethod
    def make(self, stand_in: Replacement) -> nn.Module:
        """The module, untrained, without shortcut and tail."""

    @abstractmethod
    def solve(self, sums: MomentsView, fit: Fit, stand_in: Replacement) -> Solution:
        """The closed form; `fit` is the ridge regression on all of phi, shared by every kind that starts from it."""
