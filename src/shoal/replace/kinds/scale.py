"""A number and an offset for each channel: what is left of a span that only rescales its stream."""

import torch
from torch import Tensor, nn

from shoal.plan import Replacement
from shoal.regress import RIDGES, Fit
from shoal.replace.kinds.interface import MomentsView, ReplacementType, Solution
from shoal.replace.spans import Span

_CONSTANT = 1e-12


class ChannelScale(nn.Module):
    """x * weight + bias for each channel of images (N, C, H, W) or of features in the last axis."""

    def __init__(self, channels: int, *, images: bool) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.images = images

    def forward(self, x: Tensor) -> Tensor:
        """Each channel times its number, plus its offset."""
        if self.images:
            return x * self.weight[:, None, None] + self.bias[:, None, None]
        return x * self.weight + self.bias

    def extra_repr(self) -> str:
        """Channels, and which axis they are on."""
        return f"{len(self.weight)}, images={self.images}"


class ScaleFit(ReplacementType):
    """One regression with one unknown for each channel."""

    family = "scale"
    needs = "a span that keeps its shape"
    costs = "channels"
    source = "the diagonal case of the normal equations; cf. LayerScale, Touvron et al. 2021, arXiv:2103.17239"

    def suits(self, span: Span) -> bool:
        """Only where the same shape leaves as enters."""
        return span.keeps_shape

    def make(self, stand_in: Replacement) -> nn.Module:
        """Ones and zeros."""
        return ChannelScale(stand_in.in_channels, images=stand_in.layout == "channels_first")

    def solve(self, sums: MomentsView, fit: Fit, stand_in: Replacement) -> Solution:
        """Ridge towards 1, the shortcut, with the ridge that does best on the held-out rows."""
        train, columns = sums.train, sums.columns
        spread, shared = train.xx.diagonal(), train.xy[:, columns].diagonal()
        # A spread of less is the rounding of a constant: of that channel nothing is known, and it keeps its shortcut.
        known = spread > _CONSTANT * spread.max()
        best: tuple[float, float, Tensor, Tensor] | None = None
        for ridge in sorted(RIDGES, reverse=True):
            added = ridge * spread.mean()
            number = torch.where(known, (shared + added) / torch.where(known, spread + added, 1), 1)
            weight, bias = torch.diag(number), train.mean_y[columns] - number * train.mean_x
            error = float(sums.held_out.part(columns).error(weight, bias).sum())
            if best is None or error < best[0]:
                best = (error, ridge, number, bias)
        if best is None:
            raise AssertionError("there is always a ridge")
        _, ridge, number, bias = best
        whole = torch.diag(number)
        state = {"weight": number - 1 if stand_in.shortcut else number, "bias": bias}
        return Solution(state, whole, bias, ridge)
