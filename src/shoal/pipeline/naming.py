"""What was removed in part, or with more than its branches, in sentences for the record."""

from collections.abc import Sequence

from shoal.blocks import BlockGraph
from shoal.blocks.module_replacements import unit_replacements
from shoal.plan import Remove


def removal_notes(graph: BlockGraph, removals: Sequence[Remove]) -> list[str]:
    """Which single units went, by the modules that were theirs, and which blocks lost their norms too."""
    units = [removal for removal in removals if removal.unit is not None]
    bare = [removal.path for removal in removals if removal.norms == "drop"]
    notes = []
    if units:
        listed = "; ".join(f"{removal.name} ({_modules(graph, removal)})" for removal in units)
        notes.append(f"single units were removed, the rest of their blocks stays: {listed}")
    if bare:
        notes.append(
            f"with these blocks the norms behind their additions went, which did less damage: {', '.join(bare)}"
        )
    return notes


def _modules(graph: BlockGraph, removal: Remove) -> str:
    swaps = unit_replacements(graph, removal.path, [removal.unit or 0])
    return ", ".join(path.removeprefix(f"{removal.path}.") for path in swaps)
