"""Which additions of a run are residual: one operand is the stream, the other was computed from it.

Decided by data flow alone, not by argument order or names: an operand is a shortcut if the other operand depends on
it, directly, through operations without parameters (a reshape), or through linear maps and normalisations (a
projection). Rotary embeddings, tanh-GELU and the additions inside a mixer fail the test or own no parameter.
"""

from dataclasses import dataclass
from typing import Literal

from shoal.blocks.operations import LINEAR, STRUCTURE, plain_name
from shoal.blocks.template import Opaque, Ref, leaves
from shoal.blocks.trace import Call, Op, Trace

# "declared": an adapter says what is left of the block.
ShortcutKind = Literal["identity", "projection", "reshape", "declared"]


@dataclass(frozen=True)
class Addition:
    """One residual addition: `result = stream + branch`, both computed from `origin`; `owner` is a module call."""

    op: int
    result: int
    stream: int
    branch: int
    origin: int
    shortcut: ShortcutKind
    branch_ops: tuple[int, ...]
    owner: int


@dataclass(frozen=True)
class _Walk:
    origin: int
    kind: ShortcutKind
    params: int
    ops: tuple[int, ...]


def residual_additions(trace: Trace) -> list[Addition]:
    """Every residual addition of the run, in order; of nested ones those that belong to the chain."""
    found: dict[int, Addition] = {}
    for op in trace.ops:
        one = _as_residual(trace, op, found)
        if one is not None:
            found[op.index] = one
    return _without_nested(trace, list(found.values()))


def add_operands(op: Op) -> tuple[int, int] | None:
    """The two tensor operands of a plain addition, or None where the operation is something else."""
    if plain_name(op.name) != "add" or op.kwargs.get("alpha", 1) != 1 or len(op.args) > 2:
        return None
    operands = (*op.args, *(op.kwargs[key] for key in ("input", "other") if key in op.kwargs))
    if len(operands) != 2 or not all(isinstance(one, Ref) for one in operands):
        return None
    return operands[0].value, operands[1].value


def _as_residual(trace: Trace, op: Op, before: dict[int, Addition]) -> Addition | None:
    operands = add_operands(op)
    if operands is None:
        return None
    result = op.outputs[0]
    shape = trace.values[result].shape
    candidates = []
    for stream, branch in (operands, operands[::-1]):
        if stream == branch or trace.values[stream].shape != shape:
            continue
        beside = {index: one for index, one in before.items() if trace.ops[index].call == op.call}
        walk = _walk_back(trace, stream, branch, beside)
        if walk is None:
            continue
        branch_ops = _ops_between(trace, branch, walk.origin)
        if _owns_parameters(trace, branch_ops) and not set(branch_ops) & set(walk.ops):
            candidates.append((walk.params, stream, branch, walk, branch_ops))
    if not candidates:
        return None
    _, stream, branch, walk, branch_ops = min(candidates, key=lambda one: one[0])
    first = min((*branch_ops, *walk.ops, op.index))
    owner = next((call.index for call in trace.enclosing(op.call) if call.start <= first), -1)
    return Addition(op.index, result, stream, branch, walk.origin, walk.kind, branch_ops, owner)


def _walk_back(trace: Trace, stream: int, branch: int, beside: dict[int, Addition]) -> _Walk | None:
    """From the shortcut operand back to a value that the branch depends on, through light operations only.

    Also along the stream through the residual additions `beside` this one, where branches run in parallel: x + A + M.
    """
    kind: ShortcutKind = "identity"
    current, params, ops = stream, 0, []
    while not trace.depends(branch, current):
        producer = trace.values[current].producer
        if producer < 0:
            return None
        if producer in beside and beside[producer].result == current:
            current = beside[producer].stream
            continue
        op = trace.ops[producer]
        name = plain_name(op.name)
        flowing = [value for value in dict.fromkeys(op.inputs) if _from_input(trace, value)]
        if len(flowing) != 1 or name not in STRUCTURE | LINEAR:
            return None
        if name in LINEAR:
            kind = "projection"
        elif kind == "identity":
            kind = "reshape"
        params += sum(_size(trace, value) for value in op.inputs if trace.values[value].origin == "parameter")
        ops.append(producer)
        current = flowing[0]
    if not _from_input(trace, current):
        return None
    return _Walk(current, kind, params, tuple(ops))


def _ops_between(trace: Trace, value: int, origin: int) -> tuple[int, ...]:
    """The operations that make `value` out of `origin` (and what they need besides)."""
    missing = trace.ancestors[value] & ~trace.ancestors[origin]
    found = set()
    while missing:
        low = missing & -missing
        producer = trace.values[low.bit_length() - 1].producer
        if producer >= 0:
            found.add(producer)
        missing ^= low
    return tuple(sorted(op for op in found if any(trace.depends(out, origin) for out in trace.ops[op].outputs)))


def _owns_parameters(trace: Trace, ops: tuple[int, ...]) -> bool:
    return any(trace.values[value].origin == "parameter" for op in ops for value in trace.ops[op].inputs)


def _from_input(trace: Trace, value: int) -> bool:
    return any(trace.depends(value, one) for one in trace.inputs)


def _size(trace: Trace, value: int) -> int:
    count = 1
    for length in trace.values[value].shape:
        count *= length
    return count


def _without_nested(trace: Trace, found: list[Addition]) -> list[Addition]:
    """Drop additions inside another's branch, or the outer one where it spans a chain of blocks (a long skip)."""
    dropped: set[int] = set()
    by_op = {one.op: one for one in found}
    for outer in found:
        inner = [by_op[op] for op in outer.branch_ops if op in by_op]
        owners = {one.owner for one in inner if one.owner != outer.owner}
        if len(owners) >= 2:
            dropped.add(outer.op)
        else:
            dropped.update(one.op for one in inner)
    return [one for one in found if one.op not in dropped]


def opaque_kinds(call: Call) -> list[str]:
    """What was passed to a call that no template can hold (caches, configurations)."""
    return [leaf.kind for leaf in leaves((call.args, call.kwargs)) if isinstance(leaf, Opaque)]
