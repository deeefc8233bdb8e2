"""One linear map of the channels: a 1 x 1 convolution on images, a linear layer on tokens and plain features."""

from torch import nn

from shoal.plan import Replacement
from shoal.regress import Fit
from shoal.replace.kinds.base import MomentsView, ReplacementType, Solution


class LinearFit(ReplacementType):
    """y = W x + b at each position (of the stride)."""

    family = "linear"
    requirement = "any span"
    macs_note = "channels in x channels out"
    source = "ReplaceMe, arXiv:2505.02819, there on tokens, without bias and without a change of shape"

    def build(self, replacement: Replacement) -> nn.Module:
        """A 1 x 1 convolution or a linear layer."""
        return linear_map(replacement, replacement.in_channels, replacement.out_channels, replacement.stride)

    def solve(self, moments: MomentsView, fit: Fit, replacement: Replacement) -> Solution:
        """The ridge regression as it is."""
        weight = fit.weight - moments.shortcut if replacement.shortcut else fit.weight
        return Solution({"weight": weight, "bias": fit.bias}, fit.weight, fit.bias, fit.ridge)


def linear_map(replacement: Replacement, inputs: int, outputs: int, stride: int = 1, *, bias: bool = True) -> nn.Module:
    """A linear map of the channels, in the layout of the span."""
    if replacement.layout == "channels_last":
        return nn.Linear(inputs, outputs, bias=bias)
    return nn.Conv2d(inputs, outputs, 1, stride, bias=bias)
