"""The shortcut plus a low-rank fit of the residual: down to a few features (1 x 1 or k x k), and up again.

In a bottleneck network a dense k x k map of the stream is dearer than the block itself; this is not.
"""

import torch
from torch import Tensor, nn

from shoal.plan import Replacement
from shoal.regress import Fit
from shoal.replace.kinds.base import MomentsView, ReplacementType, Solution
from shoal.replace.kinds.conv import convolution
from shoal.replace.kinds.linear import linear_map
from shoal.replace.spans import Span


class LowRankFit(ReplacementType):
    """x + U V phi(x) + b with V (rank, inputs), U (outputs, rank); the rank is a fraction of the channels.

    Args:
        kernel: of V.
        part: the rank is channels / part.
    """

    family = "lowrank"
    requirement = "a span that keeps its shape"
    macs_note = "rank x (k x k x channels in + channels out)"
    source = "reduced-rank regression: Izenman 1975, J. Multivariate Anal. 5:248"
    always_shortcut = True
    restricted = True

    def __init__(self, kernel: int, part: int) -> None:
        self.kernel, self.part = kernel, part

    def supports(self, span: Span) -> bool:
        """Only with a shortcut, and with neighbours for a kernel larger than 1."""
        positions = span.layout == "channels_first" and max(span.in_shape[1:]) > 1
        return span.keeps_shape and (positions or self.kernel == 1) and span.out_channels >= 2 * self.part

    def rank(self, span: Span) -> int | None:
        """A fraction of the channels."""
        return max(1, span.out_channels // self.part)

    def build(self, replacement: Replacement) -> nn.Module:
        """Down without a bias, up with one."""
        rank = replacement.rank or 1
        down = (
            convolution(replacement, rank, bias=False)
            if replacement.kernel > 1
            else linear_map(replacement, replacement.in_channels, rank, replacement.stride, bias=False)
        )
        return nn.Sequential(down, linear_map(replacement, rank, replacement.out_channels))

    def solve(self, moments: MomentsView, fit: Fit, replacement: Replacement) -> Solution:
        """The ridge regression of the residual, cut to the rank that keeps most of its outputs."""
        residual = fit.weight - moments.shortcut
        basis, rows = truncate_rank(residual, moments.train.xx / max(moments.train.n, 1), replacement.rank or 1)
        bias = fit.bias + (residual - basis @ rows) @ moments.train.mean_x
        images = replacement.layout == "channels_first"
        k = replacement.kernel
        down = rows.reshape(len(rows), replacement.in_channels, k, k) if images else rows
        up = basis[:, :, None, None] if images else basis
        state = {"0.weight": down, "1.weight": up, "1.bias": bias}
        return Solution(state, moments.shortcut + basis @ rows, bias, fit.ridge)


def truncate_rank(weight: Tensor, covariance: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of a map by one of this rank, as basis @ rows.

    The outputs weight @ x have covariance weight C weight^T; its leading eigenvectors span the outputs that are kept.
    """
    outputs = weight @ covariance @ weight.T
    vectors = torch.linalg.eigh((outputs + outputs.T) / 2).eigenvectors[:, -rank:]
    return vectors, vectors.T @ weight
