"""Ways to make a network faster, to set Shoal's plan against: one file each.

A method takes the common ground and a target share of the original's latency, and returns a `Made`, or raises
`Unreached`.
"""

from collections.abc import Callable

from rivals.baselines import last_k, uniform
from rivals.gates import gated
from rivals.greedy import greedy
from rivals.ground import Ground
from rivals.influence import influence
from rivals.made import Made, Unreached
from rivals.planned import planned
from rivals.practise import practise
from rivals.small import small
from rivals.width import taylor, width

METHODS: dict[str, Callable[[Ground, float], Made]] = {
    "shoal": planned,
    "greedy": greedy,
    "influence": influence,
    "width": width,
    "taylor": taylor,
    "practise": practise,
    "tinyfusion": gated,
    "last-k": last_k,
    "uniform": uniform,
    "small": small,
}
# Those of the frontier without training.
UNTRAINED = ("shoal", "greedy", "influence", "width")

__all__ = ["METHODS", "UNTRAINED", "Ground", "Made", "Unreached"]
