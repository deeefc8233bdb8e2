"""From which module on a network may be run again with everything before it taken from memory.

Code may hand values on beside the outputs of its modules: in a dict, a list, an attribute, a buffer, through a hook. A
module that is not run does not hand them on, and whoever reads them later would find those of another run, or none. So
the data flow of the trace is asked, and, since Python sees more than a trace, the network itself: every restart is
tried once on a few samples, after a run on other values, and must give what the whole network gives.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from shoal.blocks.template import Opaque, leaves
from shoal.blocks.trace import ModuleCall, Trace

# Where two whole runs differ already (kernels that add in any order): deviation as a share of the largest value.
_ROUNDING = 1e-4


def unread_beside(trace: Trace, tiles: Sequence[ModuleCall]) -> list[bool]:
    """For each tile, whether no operation from it on reads what an earlier tile made and did not return.

    Args:
        trace: the run.
        tiles: calls that follow each other, in order.
    """
    place: dict[int, int] = {op: number for number, tile in enumerate(tiles) for op in range(tile.start, tile.stop)}
    sound = [True] * len(tiles)
    returned = [set(tile.outputs) for tile in tiles]
    opaque = [any(isinstance(leaf, Opaque) for leaf in leaves(tile.output)) for tile in tiles]
    for op in trace.ops:
        last = place.get(op.index, len(tiles) - 1)
        for value in op.inputs:
            maker = place.get(trace.values[value].producer, last)
            if maker < last and value not in returned[maker] and not opaque[maker]:
                sound[maker + 1 : last + 1] = [False] * (last - maker)
    return sound


def reproduces(
    restart: Callable[[int], list[Tensor] | None], whole: Sequence[Tensor], count: int, *, exact: bool
) -> list[bool]:
    """For each of `count` places, whether a run from there on gives the outputs of the whole network.

    The last place comes first: a run rewrites only what is handed on from its place on, so what the places before it
    handed on stays that of the run on other values.

    Args:
        restart: runs the network from a place on and returns its tensors, None where it raises.
        whole: the tensors the network returned on the same samples.
        count: of the places.
        exact: whether the network gives the same numbers each time, to the bit.
    """
    sound = [False] * count
    for number in reversed(range(count)):
        again = restart(number)
        sound[number] = again is not None and same_tensors(again, whole, exact=exact)
    return sound


def same_tensors(first: Sequence[Tensor], second: Sequence[Tensor], *, exact: bool = True) -> bool:
    """Whether two rows of tensors are equal, to the bit or to rounding; NaN is NaN."""
    return len(first) == len(second) and all(map(_equal if exact else _close, first, second))


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or not a.is_floating_point():
        return _equal(a, b)
    scale = float(b.abs().nan_to_num(posinf=0).max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=_ROUNDING, atol=_ROUNDING * scale, equal_nan=True)
