"""The kinds of stand-ins: one table of all of them, by the name that plans and tables call them."""

from shoal.plan import StandIn
from shoal.replace.kinds.conv import Conv
from shoal.replace.kinds.identity import Identity
from shoal.replace.kinds.interface import Kind, KindName, Solution, Sums
from shoal.replace.kinds.linear import Linear
from shoal.replace.kinds.low_rank import LowRank
from shoal.replace.kinds.scale import Scale

KINDS: dict[str, Kind] = {
    "identity": Identity(),
    "scale": Scale(),
    "linear": Linear(),
    "conv3": Conv(3),
    "conv5": Conv(5),
    "lowrank1/4": LowRank(1, 4),
    "lowrank1/16": LowRank(1, 16),
    "lowrank3/8": LowRank(3, 8),
}

_FAMILIES: dict[str, type[Kind]] = {
    "identity": Identity,
    "scale": Scale,
    "linear": Linear,
    "conv": Conv,
    "lowrank": LowRank,
}


def kind_of(stand_in: StandIn) -> Kind:
    """The kind that a stand-in read from a plan is of."""
    if stand_in.kind == "conv":
        return Conv(stand_in.kernel)
    if stand_in.kind == "lowrank":
        return LowRank(stand_in.kernel, max(1, stand_in.out_channels // (stand_in.rank or 1)))
    return _FAMILIES[stand_in.kind]()


__all__ = ["KINDS", "Kind", "KindName", "Solution", "Sums", "kind_of"]
