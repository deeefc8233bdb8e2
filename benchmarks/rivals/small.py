"""The small network that people would take instead, trained by others: no cut at all."""

import copy

from rivals.ground import SLACK, Ground
from rivals.made import Made, Unreached

_SECONDS = 4.0


def small(ground: Ground, target: float) -> Made:
    """`Ground.small` as it is, at every point whose share it meets."""
    if ground.small is None:
        raise Unreached(None, "no small network was given")
    share = ground.share(ground.small, _SECONDS)
    if share > target * SLACK:
        raise Unreached(share, "it has one size")
    return Made(copy.deepcopy(ground.small).eval(), {"network": "the small network as it is"}, small=True)
