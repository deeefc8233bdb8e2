"""Nothing at all: the layers go, and only the activation behind them stays."""

import torch
from torch import nn

from shoal.plan import Replacement
from shoal.regress import Fit
from shoal.replace.kinds.interface import MomentsView, ReplacementType, Solution
from shoal.replace.spans import Span


class ShortcutOnly(ReplacementType):
    """Removal of a span of plain layers; residual blocks are removed by name, down to their shortcuts."""

    family = "identity"
    needs = "a span of plain layers that keeps its shape"
    costs = "0"
    source = "Veit et al. 2016, arXiv:1605.06431 (removal of single layers)"

    def suits(self, span: Span) -> bool:
        """Only where the same shape leaves as enters."""
        return span.keeps_shape and not span.residual

    def make(self, stand_in: Replacement) -> nn.Module:
        """An nn.Identity."""
        return nn.Identity()

    def solve(self, sums: MomentsView, fit: Fit, stand_in: Replacement) -> Solution:
        """Nothing to fit."""
        return Solution({}, sums.shortcut, torch.zeros_like(fit.bias), 0.0)
