"""Ways to make a network faster, to set Shoal's plan against: one file each.

A way takes the common ground and a target share of the original's latency, and gives back a `Made`, or raises
`Unreached`.
"""

from collections.abc import Callable

from rivals.greedy import greedy
from rivals.ground import Ground
from rivals.influence import influence
from rivals.made import Made, Unreached
from rivals.planned import planned
from rivals.practise import practise
from rivals.width import taylor, width

METHODS: dict[str, Callable[[Ground, float], Made]] = {
    "shoal": planned,
    "greedy": greedy,
    "influence": influence,
    "width": width,
    "taylor": taylor,
    "practise": practise,
}
# Those of the frontier without training.
UNTRAINED = ("shoal", "greedy", "influence", "width")

__all__ = ["METHODS", "UNTRAINED", "Ground", "Made", "Unreached"]
