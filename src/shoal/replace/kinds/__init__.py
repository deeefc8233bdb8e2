"""The kinds of stand-ins: one table of all of them, by the name that plans and tables call them."""

from shoal.plan import Replacement
from shoal.replace.kinds.conv import ConvFit
from shoal.replace.kinds.identity import ShortcutOnly
from shoal.replace.kinds.interface import KindName, MomentsView, ReplacementType, Solution
from shoal.replace.kinds.linear import LinearFit
from shoal.replace.kinds.low_rank import LowRankFit
from shoal.replace.kinds.scale import ScaleFit

KINDS: dict[str, ReplacementType] = {
    "identity": ShortcutOnly(),
    "scale": ScaleFit(),
    "linear": LinearFit(),
    "conv3": ConvFit(3),
    "conv5": ConvFit(5),
    "lowrank1/4": LowRankFit(1, 4),
    "lowrank1/16": LowRankFit(1, 16),
    "lowrank3/8": LowRankFit(3, 8),
}

_FAMILIES: dict[str, type[ReplacementType]] = {
    "identity": ShortcutOnly,
    "scale": ScaleFit,
    "linear": LinearFit,
    "conv": ConvFit,
    "lowrank": LowRankFit,
}


def kind_of(stand_in: Replacement) -> ReplacementType:
    """The kind that a stand-in read from a plan is of."""
    if stand_in.kind == "conv":
        return ConvFit(stand_in.kernel)
    if stand_in.kind == "lowrank":
        return LowRankFit(stand_in.kernel, max(1, stand_in.out_channels // (stand_in.rank or 1)))
    return _FAMILIES[stand_in.kind]()


__all__ = ["KINDS", "KindName", "MomentsView", "ReplacementType", "Solution", "kind_of"]
