"""A factor and an offset for each channel, for a span that does little more than rescale its stream."""

import torch
from torch import Tensor, nn

from shoal.plan import Replacement
from shoal.regress import RIDGES, Fit
from shoal.replace.kinds.base import MomentsView, ReplacementType, Solution
from shoal.replace.spans import Span

_CONSTANT = 1e-12


class ChannelScale(nn.Module):
    """x * weight + bias for each channel of images (N, C, H, W) or of features in the last axis."""

    def __init__(self, channels: int, *, images: bool) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.images = images

    def forward(self, x: Tensor) -> Tensor:
        """Each channel times its factor, plus its offset."""
        if self.images:
            return x * self.weight[:, None, None] + self.bias[:, None, None]
        return x * self.weight + self.bias

    def extra_repr(self) -> str:
        """Channels, and which axis they are on."""
        return f"{len(self.weight)}, images={self.images}"


class ScaleFit(ReplacementType):
    """One regression with a single unknown for each channel."""

    family = "scale"
    requirement = "a span that keeps its shape"
    macs_note = "channels"
    restricted = True
    source = "the diagonal case of the normal equations; cf. LayerScale, Touvron et al. 2021, arXiv:2103.17239"

    def supports(self, span: Span) -> bool:
        """Only spans that keep their shape."""
        return span.keeps_shape

    def build(self, replacement: Replacement) -> nn.Module:
        """Ones and zeros."""
        return ChannelScale(replacement.in_channels, images=replacement.layout == "channels_first")

    def solve(self, moments: MomentsView, fit: Fit, replacement: Replacement) -> Solution:
        """Ridge towards 1, the shortcut, with the ridge that does best on the held-out rows."""
        train, columns = moments.train, moments.columns
        spread, shared = train.xx.diagonal(), train.xy[:, columns].diagonal()
        # A smaller spread is the rounding of a constant: such a channel keeps its shortcut.
        varies = spread > _CONSTANT * spread.max()
        best: tuple[float, float, Tensor, Tensor] | None = None
        for ridge in sorted(RIDGES, reverse=True):
            added = ridge * spread.mean()
            factor = torch.where(varies, (shared + added) / torch.where(varies, spread + added, 1), 1)
            weight, bias = torch.diag(factor), train.mean_y[columns] - factor * train.mean_x
            error = float(moments.held_out.part(columns).error(weight, bias).sum())
            if best is None or error < best[0]:
                best = (error, ridge, factor, bias)
        if best is None:
            raise AssertionError("there is always a ridge")
        _, ridge, factor, bias = best
        state = {"weight": factor - 1 if replacement.shortcut else factor, "bias": bias}
        return Solution(state, torch.diag(factor), bias, ridge)
