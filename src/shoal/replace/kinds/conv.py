"""One k x k convolution, with the stride and the dilation of the span."""

from torch import nn

from shoal.plan import Replacement
from shoal.regress import Fit
from shoal.replace.kinds.interface import MomentsView, ReplacementType, Solution
from shoal.replace.spans import Span


class ConvFit(ReplacementType):
    """y = W * x + b over k x k neighbourhoods, zero-padded as the span's own convolutions are."""

    family = "conv"
    needs = "a span of images (channels, height, width)"
    costs = "k x k x channels in x channels out"
    source = "normal equations over neighbourhoods (im2col); the depth merge of LayerMerge, arXiv:2406.12837, is dearer"

    def __init__(self, kernel: int) -> None:
        self.kernel = kernel

    def suits(self, span: Span) -> bool:
        """Only where there are neighbours: on a single position it would be a linear map with idle weights."""
        return span.layout == "channels_first" and max(span.in_shape[1:]) > 1

    def make(self, stand_in: Replacement) -> nn.Module:
        """A convolution."""
        return convolution(stand_in, stand_in.out_channels)

    def solve(self, sums: MomentsView, fit: Fit, stand_in: Replacement) -> Solution:
        """The ridge regression, in the order of a convolution's weight."""
        weight = fit.weight - sums.shortcut if stand_in.shortcut else fit.weight
        shape = (stand_in.out_channels, stand_in.in_channels, self.kernel, self.kernel)
        return Solution({"weight": weight.reshape(shape), "bias": fit.bias}, fit.weight, fit.bias, fit.ridge)


def convolution(stand_in: Replacement, outputs: int, *, bias: bool = True) -> nn.Module:
    """A convolution from the channels of the span."""
    k, dilation = stand_in.kernel, stand_in.dilation
    padding = dilation * (k // 2)
    return nn.Conv2d(stand_in.in_channels, outputs, k, stand_in.stride, padding, dilation=dilation, bias=bias)
