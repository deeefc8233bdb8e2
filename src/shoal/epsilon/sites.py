"""Where a gate is put: on the module that ends the branch, or, where code ends it, in front of the addition itself."""

from dataclasses import dataclass

from shoal.blocks import BlockGraph
from shoal.blocks.additions import Addition
from shoal.blocks.template import TensorRef
from shoal.blocks.trace import ModuleCall, Trace


@dataclass(frozen=True)
class Site:
    """The place of one gate.

    Args:
        block: path of the block.
        unit: number of the residual addition in the block.
        module: path of the module whose output is the whole branch, or None: then only the addition sees the branch
            (it ends in a product with a parameter, or leaves its last module in a tuple).
    """

    block: str
    unit: int
    module: str | None


def sites_of(anatomy: BlockGraph) -> list[Site]:
    """One site for every residual addition of every removable block, in the order they run."""
    return [
        Site(block.path, number, _last_module(anatomy.trace, anatomy.calls[block.path], addition))
        for block in anatomy.chain.removable
        for number, addition in enumerate(anatomy.additions[block.path])
    ]


def _last_module(trace: Trace, block: ModuleCall, addition: Addition) -> str | None:
    """The outermost module inside the block whose output is the branch and nothing else."""
    if trace.readers.get(addition.branch, []) != [addition.op]:
        return None  # somebody else reads the branch: a gate on the module would change that too
    producer = trace.values[addition.branch].producer
    found = None
    for call in trace.enclosing(trace.ops[producer].call):
        if call.index == block.index or call.holds(addition.op):
            break
        if call.output == TensorRef(addition.branch) and len(trace.calls_of(call.module)) == 1:
            found = call.path
    return found
