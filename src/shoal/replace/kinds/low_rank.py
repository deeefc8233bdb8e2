"""The shortcut plus a low-rank fit of the residual: down to a few features (1 x 1 or k x k), and up again.

In a bottleneck network a dense k x k map of the stream is dearer than the block itself; this is not.
"""

import torch
from torch import Tensor, nn

from shoal.plan import Replacement
from shoal.regress import Fit
from shoal.replace.kinds.conv import convolution
from shoal.replace.kinds.interface import MomentsView, ReplacementType, Solution
from shoal.replace.kinds.linear import linear_map
from shoal.replace.spans import Span


class LowRankFit(ReplacementType):
    """x + U V phi(x) + b with V (rank, inputs), U (outputs, rank); the rank is a share of the channels.

    Args:
        kernel: of the way down.
        part: the rank is channels / part.
    """

    family = "lowrank"
    needs = "a span that keeps its shape"
    costs = "rank x (k x k x channels in + channels out)"
    source = "reduced-rank regression: Izenman 1975, J. Multivariate Anal. 5:248"
    always_shortcut = True

    def __init__(self, kernel: int, part: int) -> None:
        self.kernel, self.part = kernel, part

    def suits(self, span: Span) -> bool:
        """Only with a shortcut, and neighbours where it looks at them."""
        positions = span.layout == "channels_first" and max(span.in_shape[1:]) > 1
        return span.keeps_shape and (positions or self.kernel == 1) and span.out_channels >= 2 * self.part

    def rank(self, span: Span) -> int | None:
        """A share of the channels."""
        return max(1, span.out_channels // self.part)

    def make(self, stand_in: Replacement) -> nn.Module:
        """Down without a bias, up with one."""
        rank = stand_in.rank or 1
        down = (
            convolution(stand_in, rank, bias=False)
            if stand_in.kernel > 1
            else linear_map(stand_in, stand_in.in_channels, rank, stand_in.stride, bias=False)
        )
        return nn.Sequential(down, linear_map(stand_in, rank, stand_in.out_channels))

    def solve(self, sums: MomentsView, fit: Fit, stand_in: Replacement) -> Solution:
        """The ridge regression of the residual, cut to the rank that keeps most of its outputs."""
        residual = fit.weight - sums.shortcut
        left, rows = reduced(residual, sums.train.xx / max(sums.train.n, 1), stand_in.rank or 1)
        bias = fit.bias + (residual - left @ rows) @ sums.train.mean_x
        images = stand_in.layout == "channels_first"
        k = stand_in.kernel
        down = rows.reshape(len(rows), stand_in.in_channels, k, k) if images else rows
        up = left[:, :, None, None] if images else left
        state = {"0.weight": down, "1.weight": up, "1.bias": bias}
        return Solution(state, sums.shortcut + left @ rows, bias, fit.ridge)


def reduced(weight: Tensor, covariance: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best map of a rank to the same outputs, as left @ rows.

    The outputs weight @ x have covariance weight C weight^T; its leading eigenvectors span the outputs to keep.
    """
    outputs = weight @ covariance @ weight.T
    vectors = torch.linalg.eigh((outputs + outputs.T) / 2).eigenvectors[:, -rank:]
    return vectors, vectors.T @ weight
