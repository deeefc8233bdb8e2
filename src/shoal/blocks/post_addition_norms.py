"""The norms of post-norm blocks, LN(x + F): those that are the only reader of what an addition makes.

They are part of the block, not of the stream: where the next block reads what they return, a block may be taken out
with them or without them. A norm that reads the stream beside others (pre-norm) belongs to its branch instead.
"""

from shoal.blocks.additions import Addition
from shoal.blocks.operations import plain_name
from shoal.blocks.trace import ModuleCall, OpRecord, Trace

_WHOLE = frozenset(["layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm"])
_INSIDE = _WHOLE | {"rsqrt"}  # what a norm written by hand divides by


def post_addition_norms(run: Trace, block: ModuleCall, additions: list[Addition]) -> dict[int, int]:
    """What each norm behind an addition of a block returns, and the sum that it reads."""
    found = {}
    for one in additions:
        readers = [run.ops[op] for op in run.readers.get(one.result, [])]
        if readers and all(block.holds(op.index) for op in readers):
            normed = _normed(run, one, readers)
            if normed is not None:
                found[normed] = one.result
    return found


def _normed(run: Trace, one: Addition, readers: list[OpRecord]) -> int | None:
    first = readers[0]
    if len(readers) == 1 and plain_name(first.name) in _WHOLE:
        return first.outputs[0] if len(first.outputs) == 1 else None
    for call in run.enclosing(first.call):
        if call.holds(one.op):
            return None
        if all(call.holds(op.index) for op in readers) and _is_norm(run, call, one):
            return call.outputs[0]
    return None


def _is_norm(run: Trace, call: ModuleCall, one: Addition) -> bool:
    parameters = list(call.module.parameters())
    small = bool(parameters) and all(parameter.dim() == 1 for parameter in parameters)
    divides = any(plain_name(op.name) in _INSIDE for op in run.ops[call.start : call.stop])
    same = len(call.outputs) == 1 and run.values[call.outputs[0]].shape == run.values[one.result].shape
    return small and divides and same and call.inputs == [one.result]
