"""Removals of single units: what a plan by units may take out of a block and leave the rest of it.

Of a block with two units there are two such changes, attention alone and MLP alone; of one with more, every part of its
units. Each is an edge over the block, like the removal of the whole block, so that its damage is measured as it is and
not added up from those of units.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, combinations

from torch import nn

from shoal.blocks import Block, BlockGraph
from shoal.blocks.module_replacements import block_without_units, removable_units, unit_replacements
from shoal.blocks.prefix_cache import Forward
from shoal.errors import SurgeryError
from shoal.plan import Remove
from shoal.replace import Segment, SegmentChain


@dataclass(frozen=True, eq=False)
class UnitRemoval:
    """Some units of a block removed, others left.

    Args:
        segment: the block as a segment of the chain.
        units: those that go.
        module: the block without them; it shares what is left with the block itself.
        forwards: what runs in the place of modules of the network.
    """

    segment: Segment
    units: tuple[int, ...]
    module: nn.Module
    forwards: Mapping[nn.Module, Forward]

    @property
    def name(self) -> str:
        """Of this change in a table."""
        return "remove " + " ".join(removal.name for removal in self.removals)

    @property
    def removals(self) -> tuple[Remove, ...]:
        """As actions of a plan."""
        return tuple(Remove(path=self.segment.path, unit=unit) for unit in self.units)


def unit_removals(
    graph: BlockGraph, segments: SegmentChain, allowed: Mapping[str, tuple[int, ...]]
) -> list[UnitRemoval]:
    """Every part of the units of every block that can be removed while the block itself stays.

    Args:
        graph: of the network.
        segments: of the network.
        allowed: by block the units that may go.
    """
    return [
        removal
        for segment in segments.segments
        if segment.path in allowed
        for units in _parts(graph, graph.chain[segment.path], allowed.get(segment.path, ()))
        if (removal := _unit_removal(graph, segment, units)) is not None
    ]


def _parts(graph: BlockGraph, block: Block, allowed: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The sets of units that may go, fewer than all of them."""
    removable = [unit for unit in removable_units(graph, block) if unit in allowed] if allowed else []
    sizes = range(1, min(len(removable), len(block.removable_units) - 1) + 1)
    return list(chain.from_iterable(combinations(removable, size) for size in sizes))


def _unit_removal(graph: BlockGraph, segment: Segment, units: tuple[int, ...]) -> UnitRemoval | None:
    try:
        stubs = unit_replacements(graph, segment.path, units)
        module = block_without_units(graph, segment.path, units)
    except SurgeryError:  # each of them can go, but not together
        return None
    forwards = {graph.model.get_submodule(path): stub.forward for path, stub in stubs.items()}
    return UnitRemoval(segment, units, module, forwards)
