"""No map at all: the layers are removed, only the activation after them stays."""

import torch
from torch import nn

from shoal.plan import Replacement
from shoal.regress import Fit
from shoal.replace.kinds.base import MomentsView, ReplacementType, Solution
from shoal.replace.spans import Span


class ShortcutOnly(ReplacementType):
    """Removal of a span of plain layers; residual blocks are removed by name, down to their shortcuts."""

    family = "identity"
    requirement = "a span of plain layers that keeps its shape"
    macs_note = "0"
    source = "Veit et al. 2016, arXiv:1605.06431 (removal of single layers)"

    def supports(self, span: Span) -> bool:
        """Only spans of plain layers that keep their shape."""
        return span.keeps_shape and not span.residual

    def build(self, replacement: Replacement) -> nn.Module:
        """An nn.Identity."""
        return nn.Identity()

    def solve(self, moments: MomentsView, fit: Fit, replacement: Replacement) -> Solution:
        """Nothing to fit."""
        return Solution({}, moments.shortcut, torch.zeros_like(fit.bias), 0.0)
