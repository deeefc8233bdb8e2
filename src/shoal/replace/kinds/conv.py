"""One k x k convolution, with the stride and the dilation of the span."""

from torch import nn

from shoal.plan import Replacement
from shoal.regress import Fit
from shoal.replace.kinds.base import MomentsView, ReplacementType, Solution
from shoal.replace.spans import Span


class ConvFit(ReplacementType):
    """y = W * x + b over k x k neighbourhoods, zero-padded as the span's own convolutions are."""

    family = "conv"
    requirement = "a span of images (channels, height, width)"
    macs_note = "k x k x channels in x channels out"
    source = "normal equations over neighbourhoods (im2col); the depth merge of LayerMerge, arXiv:2406.12837, is dearer"

    def __init__(self, kernel: int) -> None:
        self.kernel = kernel

    def supports(self, span: Span) -> bool:
        """Only where there are neighbours: at a single position it would be a linear map with unused weights."""
        return span.layout == "channels_first" and max(span.in_shape[1:]) > 1

    def build(self, replacement: Replacement) -> nn.Module:
        """A convolution."""
        return convolution(replacement, replacement.out_channels)

    def solve(self, moments: MomentsView, fit: Fit, replacement: Replacement) -> Solution:
        """The ridge regression, in the order of a convolution's weight."""
        weight = fit.weight - moments.shortcut if replacement.shortcut else fit.weight
        shape = (replacement.out_channels, replacement.in_channels, self.kernel, self.kernel)
        return Solution({"weight": weight.reshape(shape), "bias": fit.bias}, fit.weight, fit.bias, fit.ridge)


def convolution(replacement: Replacement, outputs: int, *, bias: bool = True) -> nn.Module:
    """A convolution from the channels of the span."""
    k, dilation = replacement.kernel, replacement.dilation
    padding = dilation * (k // 2)
    return nn.Conv2d(replacement.in_channels, outputs, k, replacement.stride, padding, dilation=dilation, bias=bias)
