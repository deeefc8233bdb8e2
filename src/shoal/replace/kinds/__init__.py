"""The kinds of replacements: one table of all of them, by the name that users and candidate tables use.

To add one: a file with a `ReplacementType`, a line in the table. Another distribution adds its own by an entry point in
the group `shoal.replacements` that refers to an instance whose `family` is the name of the entry point.
"""

from torch import Tensor, nn

from shoal.errors import PlanError
from shoal.plan import Replacement
from shoal.plugins import Plugin, PluginTable
from shoal.regress import Fit
from shoal.replace.kinds.base import MomentsView, ReplacementType, Solution
from shoal.replace.kinds.conv import ConvFit
from shoal.replace.kinds.identity import ShortcutOnly
from shoal.replace.kinds.linear import LinearFit
from shoal.replace.kinds.low_rank import LowRankFit
from shoal.replace.kinds.scale import ScaleFit
from shoal.replace.spans import Span

_BUILT_IN: dict[str, ReplacementType] = {
    "identity": ShortcutOnly(),
    "scale": ScaleFit(),
    "linear": LinearFit(),
    "conv3": ConvFit(3),
    "conv5": ConvFit(5),
    "lowrank1/4": LowRankFit(1, 4),
    "lowrank1/16": LowRankFit(1, 16),
    "lowrank3/8": LowRankFit(3, 8),
}


class PluginReplacement(ReplacementType):
    """A kind of replacement of another distribution: what it returns is checked, what it raises names its origin."""

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin
        self.kind = plugin.expect(ReplacementType, "a ReplacementType")  # type: ignore[type-abstract]
        if self.kind.family != plugin.name:
            raise plugin.error(f"has the family {self.kind.family!r}, expected the name of the entry point")
        with plugin.guard():
            self.requirement, self.macs_note = self.kind.requirement, self.kind.macs_note  # type: ignore[misc]
            self.source, self.kernel = self.kind.source, self.kind.kernel  # type: ignore[misc]

    def supports(self, span: Span) -> bool:
        """Whether it can replace this span."""
        with self.plugin.guard():
            return bool(self.kind.supports(span))

    def spec(self, span: Span) -> Replacement:
        """The replacement for a span as plain data."""
        with self.plugin.guard():
            replacement = self.kind.spec(span)
        if not isinstance(replacement, Replacement) or replacement.kind != self.plugin.name:
            raise self.plugin.error(f"describes itself as {replacement!r}, expected a Replacement of its own kind")
        return replacement

    def build(self, replacement: Replacement) -> nn.Module:
        """The branch, unfitted, without shortcut and tail."""
        with self.plugin.guard():
            module = self.kind.build(replacement)
        if not isinstance(module, nn.Module):
            raise self.plugin.error(f"built {type(module).__name__}, expected a torch.nn.Module")
        return module

    def solve(self, moments: MomentsView, fit: Fit, replacement: Replacement) -> Solution:
        """The closed form."""
        with self.plugin.guard():
            solution = self.kind.solve(moments, fit, replacement)
        if not isinstance(solution, Solution):
            raise self.plugin.error(f"returned {type(solution).__name__}, expected a Solution")
        expected, computed = _sizes(self.build(replacement).state_dict()), _sizes(solution.state)
        if expected != computed:
            raise self.plugin.error(f"fitted parameters of these sizes: {computed}, its module has {expected}")
        if solution.weight.shape != fit.weight.shape or solution.bias.shape != fit.bias.shape:
            raise self.plugin.error(
                f"returned a map of shape {tuple(solution.weight.shape)}, expected {tuple(fit.weight.shape)}"
            )
        return solution


def _sizes(state: dict[str, Tensor]) -> dict[str, int]:
    return {name: tensor.numel() for name, tensor in sorted(state.items())}


REPLACEMENTS: PluginTable[ReplacementType] = PluginTable("shoal.replacements", _BUILT_IN, PluginReplacement)


def replacement_type(replacement: Replacement) -> ReplacementType:
    """The kind of a replacement that was read from a plan.

    Raises:
        PlanError: it comes from a distribution that is not installed.
    """
    if replacement.kind == "conv":
        return ConvFit(replacement.kernel)
    if replacement.kind == "lowrank":
        return LowRankFit(replacement.kernel, max(1, replacement.out_channels // (replacement.rank or 1)))
    if replacement.kind not in REPLACEMENTS:
        raise PlanError(
            f"no installed distribution offers the replacement '{replacement.kind}'",
            "Install the one that the plan was made with (entry points shoal.replacements).",
        )
    return REPLACEMENTS[replacement.kind]


__all__ = ["REPLACEMENTS", "MomentsView", "PluginReplacement", "ReplacementType", "Solution", "replacement_type"]
