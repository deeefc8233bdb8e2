"""What was removed in part, or with more than its branches, in sentences for the record."""

from collections.abc import Sequence

from shoal.blocks import BlockGraph
from shoal.blocks.module_replacements import unit_replacements
from shoal.plan import Remove


def removal_notes(anatomy: BlockGraph, removals: Sequence[Remove]) -> list[str]:
    """Which single units went, by the modules that were theirs, and which blocks lost their norms too."""
    units = [one for one in removals if one.unit is not None]
    bare = [one.path for one in removals if one.norms == "drop"]
    notes = []
    if units:
        listed = "; ".join(f"{one.name} ({_modules(anatomy, one)})" for one in units)
        notes.append(f"single units were removed, the rest of their blocks stays: {listed}")
    if bare:
        notes.append(
            f"with these blocks the norms behind their additions went, which did less damage: {', '.join(bare)}"
        )
    return notes


def _modules(anatomy: BlockGraph, one: Remove) -> str:
    swaps = unit_replacements(anatomy, one.path, [one.unit or 0])
    return ", ".join(path.removeprefix(f"{one.path}.") for path in swaps)
