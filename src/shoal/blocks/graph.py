"""A traced network taken apart: its chain, and what is left of each block."""

from dataclasses import dataclass, field, replace

from torch import nn

from shoal.batches import Batch
from shoal.blocks.additions import Addition
from shoal.blocks.chain import Block, Chain
from shoal.blocks.explain import explain_no_residuals
from shoal.blocks.trace import ModuleCall, Trace


@dataclass(frozen=True)
class BlockGraph:
    """A traced network: its chain, and for every removable block the module that is left without its branches.

    The remainders share parameters with `model`; surgery copies them. `bare` are those without the norms behind the
    additions too, where there are any; `cuts` what stands where when single units go, as far as anybody asked (see
    `units`), each checked by a run on `example`, one sample; `restarts` from where it may be run again (see `prefix`).
    """

    model: nn.Module
    trace: Trace
    chain: Chain
    remainders: dict[str, nn.Module]
    additions: dict[str, tuple[Addition, ...]]
    calls: dict[str, ModuleCall] = field(default_factory=dict)
    bare: dict[str, nn.Module] = field(default_factory=dict)
    example: Batch | None = None
    cuts: dict[tuple[str, frozenset[int]], dict[str, nn.Module]] = field(default_factory=dict)
    restarts: dict[str, str] = field(default_factory=dict)


def without_removable(anatomy: BlockGraph, reasons: dict[str, str]) -> BlockGraph:
    """The anatomy with these blocks marked as not removable, each with its reason."""
    if not reasons:
        return anatomy
    blocks = tuple(
        replace(block, removable=False, reason=reasons[block.path]) if block.path in reasons else block
        for block in anatomy.chain
    )
    remainders = {path: module for path, module in anatomy.remainders.items() if path not in reasons}
    bare = {path: module for path, module in anatomy.bare.items() if path not in reasons}
    chain = Chain(blocks, note_of(list(blocks), anatomy.trace))
    return replace(anatomy, chain=chain, remainders=remainders, bare=bare)


def note_of(blocks: list[Block], run: Trace) -> str | None:
    """Why a network has no block that can be removed; None where it has one."""
    if not any(block.units or block.shortcut == "declared" for block in blocks):
        said = "no residual block: no addition of this network joins a branch and a shortcut"
        return f"{said}; {explain_no_residuals(run)}"
    if not any(block.removable for block in blocks):
        return "no removable block: see the reason of each"
    return None
