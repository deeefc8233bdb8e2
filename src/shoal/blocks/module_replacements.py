"""What stands where, once blocks or single units of them are removed."""

from collections.abc import Sequence

from torch import nn

from shoal.blocks.graph import BlockGraph
from shoal.blocks.units import unit_replacements
from shoal.plan import Remove


def module_replacements(anatomy: BlockGraph, removals: Sequence[Remove]) -> dict[str, nn.Module]:
    """By the path of a module what takes its place: of a whole block its remainder, of its units what computes nothing.

    Raises:
        KeyError: a block that has no remainder; see `surgery.check_removable`.
        UnknownBlockError, SurgeryError: a unit that cannot be taken out.
    """
    found: dict[str, nn.Module] = {}
    units: dict[str, list[int]] = {}
    for one in removals:
        if one.unit is not None:
            units.setdefault(one.path, []).append(one.unit)
        else:
            found[one.path] = (anatomy.bare if one.norms == "drop" else anatomy.remainders)[one.path]
    for path, numbers in units.items():
        found |= unit_replacements(anatomy, path, numbers)
    return found


def normalize_removals(anatomy: BlockGraph, removals: Sequence[Remove]) -> list[Remove]:
    """The same removals in the order of the chain; a block that loses all its units goes whole, where it can."""
    found: list[Remove] = []
    for block in anatomy.chain:
        own = [one for one in removals if one.path == block.path]
        units = sorted(one.unit for one in own if one.unit is not None)
        if block.removable and units and units == list(range(len(block.units))):
            own = [Remove(path=block.path)]
        found += sorted(own, key=lambda one: one.unit or 0)
    return found
