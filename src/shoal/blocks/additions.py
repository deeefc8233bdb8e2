"""Which additions of a run are residual: one operand is the stream, the other was computed from it.

Decided by data flow alone, not by argument order or names: an operand is a shortcut if the other operand depends on
it, directly, through operations without parameters (a reshape), or through linear maps and normalisations (a
projection). Rotary embeddings, tanh-GELU and the additions inside a mixer fail the test or own no parameter.

Some layers are sums themselves: a linear map with an adapter next to it (LoRA), or two convolutions that a deployed
network merges (RepConv). Inside the branch of another addition they are parts of it, however many there are.

The norms of post-norm blocks, LN(x + F), are found here too: those that are the only reader of an addition's result.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from shoal.blocks.operations import LINEAR, STRUCTURE, OpSignature, plain_name
from shoal.blocks.template import Opaque, leaves
from shoal.blocks.trace import ModuleCall, OpRecord, Trace
from shoal.blocks.zero_analysis import zero_values

_SUMS = frozenset(["add", "sub"])
_LINEAR_TOO = _SUMS | {"mul", "div", "neg"}

# "declared": an adapter returns the shortcut.
ShortcutKind = Literal["identity", "projection", "reshape", "declared"]


@dataclass(frozen=True)
class Addition:
    """One residual addition: `result = stream + branch`, both computed from `origin`; `owner` is a module call.

    `shortcut_ops` lead from the origin to the stream. It `is_layer` where it is a linear layer made of sums.
    """

    op: int
    result: int
    stream: int
    branch: int
    origin: int
    shortcut: ShortcutKind
    branch_ops: tuple[int, ...]
    owner: int
    shortcut_ops: tuple[int, ...] = ()
    is_layer: bool = False


@dataclass(frozen=True)
class _ShortcutPath:
    origin: int
    kind: ShortcutKind
    params: int
    ops: tuple[int, ...]


def residual_additions(trace: Trace) -> list[Addition]:
    """Every residual addition of the run, in order; of nested ones those that belong to the chain."""
    search = AdditionSearch(trace)
    for op in trace.ops:
        addition = search.residual(op)
        if addition is not None:
            search.additions[op.index] = addition
    return _without_nested(trace, list(search.additions.values()))


def add_operands(op: OpRecord) -> tuple[int, int] | None:
    """The two tensor operands of a plain addition, or None where the operation is something else."""
    return sum_operands(op.signature) if op.value is not None else None


def sum_operands(signature: OpSignature | None) -> tuple[int, int] | None:
    """The two tensors that an operation adds as they are, however it is spelled; None where it does anything else."""
    if signature is None or signature.name != "add" or signature.get("alpha") != 1:
        return None
    first, second = signature.tensor("input"), signature.tensor("other")
    return (first, second) if first is not None and second is not None else None


class AdditionSearch:
    """Visits the operations of a run in order and collects residual additions."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.additions: dict[int, Addition] = {}
        # Made from the input, but for its shape alone: zeros that pad a shortcut are no second stream.
        self.zeros = zero_values(trace, None)

    def residual(self, op: OpRecord) -> Addition | None:
        """The residual addition that an operation is, if it is one."""
        operands, result = add_operands(op), op.value
        if operands is None or result is None:
            return None
        trace, shape = self.trace, self.trace.values[result].shape
        candidates = []
        for stream, branch in (operands, operands[::-1]):
            if stream == branch or trace.values[stream].shape != shape:
                continue
            walk = self._walk_back(op, stream, branch)
            if walk is None:
                continue
            branch_ops = _ops_between(trace, branch, walk.origin)
            if _params(trace, branch_ops) and not set(branch_ops) & set(walk.ops):
                candidates.append((walk.params, stream, branch, walk, branch_ops))
        if not candidates:
            return None
        _, stream, branch, walk, branch_ops = min(candidates, key=lambda candidate: candidate[0])
        first = min((*branch_ops, *walk.ops, op.index))
        owner = next((call.index for call in trace.enclosing(op.call) if call.start <= first), -1)
        is_layer = walk.kind == "projection" and (
            walk.params >= _params(trace, branch_ops) or _is_linear(trace, branch_ops, walk.origin)
        )
        return Addition(op.index, result, stream, branch, walk.origin, walk.kind, branch_ops, owner, walk.ops, is_layer)

    def _walk_back(self, addition: OpRecord, stream: int, branch: int) -> _ShortcutPath | None:
        """Walk from the shortcut operand back to a value that the branch depends on, through light operations only.

        Also along the stream through the residual additions of the same call, where branches run in parallel
        (x + A + M), and through whole layers that are sums themselves. Behind a projection it ends at such an addition:
        there it is what another stream of the block adds to this one, as in networks of two streams.
        """
        trace = self.trace
        kind: ShortcutKind = "identity"
        current, params, ops = stream, 0, list[int]()
        while not trace.depends(branch, current):
            producer = trace.values[current].producer
            before = self.additions.get(producer)
            if before is not None and before.result == current and trace.ops[producer].call == addition.call:
                if kind == "projection":
                    return None
                current = before.stream
                continue
            if producer < 0:
                return None
            if before is not None and before.is_layer and before.result == current:
                inside = (*before.branch_ops, *before.shortcut_ops, producer)
                kind, source = "projection", before.origin
            else:
                inside, step = (producer,), self._light(trace.ops[producer])
                if step is None:
                    return None
                kind, source = _heavier_kind(kind, step[0]), step[1]
            params += _params(trace, inside)
            ops += inside
            current = source
        if not _from_input(trace, current):
            return None
        return _ShortcutPath(current, kind, params, tuple(ops))

    def _light(self, op: OpRecord) -> tuple[ShortcutKind, int] | None:
        """The kind of a shortcut that passes through an operation, and the value it comes from."""
        signature = op.signature
        if signature is None:
            return None
        if signature.name == "add" and signature.get("other") == 0:  # where Python's sum() starts
            value = signature.tensor("input")
            return ("identity", value) if value is not None and _from_input(self.trace, value) else None
        if signature.name not in STRUCTURE | LINEAR:
            return None
        inputs = dict.fromkeys(signature.inputs)
        flowing = [value for value in inputs if _from_input(self.trace, value) and value not in self.zeros]
        if len(flowing) != 1:
            return None
        return ("projection" if signature.name in LINEAR else "reshape"), flowing[0]


def parallel_parts(trace: Trace, additions: Sequence[Addition]) -> list[Addition]:
    """The branches of a block with one addition, x + (A + M), that run next to each other; empty where it has only one.

    Each is an addition of its own, to what the others make. The maps that a layer is a sum of (an adapter, convolutions
    that a deployed network merges) are linear, and share what comes before them: they are parts of one branch.
    """
    if len(additions) != 1 or additions[0].is_layer:
        return []
    return _parts_of(trace, additions[0], additions[0].branch)


def _parts_of(trace: Trace, whole: Addition, value: int) -> list[Addition]:
    producer = trace.values[value].producer
    operands = add_operands(trace.ops[producer]) if producer in whole.branch_ops else None
    if operands is None or operands[0] == operands[1]:
        return []
    ops = {operand: _ops_between(trace, operand, whole.origin) for operand in operands}
    first, second = operands
    shared = tuple(set(ops[first]) & set(ops[second]))
    apart = not (trace.depends(first, second) or trace.depends(second, first)) and not _has_matrix(trace, shared)
    if not apart or any(
        not _params(trace, ops[each]) or _is_linear(trace, ops[each], whole.origin) for each in operands
    ):
        return []
    parts = []
    for branch, rest in (operands, operands[::-1]):
        part = replace(whole, op=producer, result=value, stream=rest, branch=branch, branch_ops=ops[branch])
        parts += _parts_of(trace, whole, branch) or [part]
    return sorted(parts, key=lambda part: part.branch_ops[-1])


def _has_matrix(trace: Trace, ops: tuple[int, ...]) -> bool:
    """Whether operations read more than the parameters of a norm."""
    read = [value for op in ops for value in trace.ops[op].inputs if trace.values[value].origin == "parameter"]
    return any(len(trace.values[value].shape) > 1 for value in read)


def _heavier_kind(first: ShortcutKind, second: ShortcutKind) -> ShortcutKind:
    return "projection" if "projection" in (first, second) else second


def _is_linear(trace: Trace, ops: tuple[int, ...], origin: int) -> bool:
    """Whether operations are linear in `origin`: maps, norms, sums, products with what does not depend on it."""
    for index in ops:
        signature = trace.ops[index].signature
        if signature is None or signature.name not in STRUCTURE | LINEAR | _LINEAR_TOO:
            return False
        depending = [value for value in signature.inputs if trace.depends(value, origin)]
        if signature.name not in _SUMS | STRUCTURE and len(depending) > 1:
            return False
    return True


def _ops_between(trace: Trace, value: int, origin: int) -> tuple[int, ...]:
    """The operations that compute `value` from `origin`."""
    missing = trace.ancestors[value] & ~trace.ancestors[origin]
    producers = set()
    while missing:
        low = missing & -missing
        producer = trace.values[low.bit_length() - 1].producer
        if producer >= 0:
            producers.add(producer)
        missing ^= low
    return tuple(sorted(op for op in producers if any(trace.depends(out, origin) for out in trace.ops[op].outputs)))


def _params(trace: Trace, ops: tuple[int, ...]) -> int:
    """How many parameters operations read."""
    read = [value for op in ops for value in trace.ops[op].inputs if trace.values[value].origin == "parameter"]
    return sum(prod(trace.values[value].shape) for value in read)


def entering_values(trace: Trace, value: int, inputs: Sequence[int]) -> list[int]:
    """Of the inputs of a block those that a value inside it is made of: of the origin of an addition the stream.

    The stream depends also on a mask that earlier blocks were given: an input that another of them is made of is none.
    """
    reached = [entering for entering in inputs if trace.depends(value, entering)]
    return [
        entering
        for entering in reached
        if not any(other != entering and trace.depends(other, entering) for other in reached)
    ]


def _from_input(trace: Trace, value: int) -> bool:
    return any(trace.depends(value, source) for source in trace.inputs)


def _without_nested(trace: Trace, additions: list[Addition]) -> list[Addition]:
    """Drop additions inside another's branch, or the outer one where it spans a chain of blocks (a long skip).

    It spans a chain where the stream itself runs through additions of several modules inside: layers that are sums do
    not count, each of them is a map that the branch applies. The outer one is dropped, too, where it begins or ends,
    and not both, in a module that the inner one is a unit of: it adds one stream of that module to another.
    """
    dropped: set[int] = set()
    by_op = {addition.op: addition for addition in additions}
    for outer in additions:
        inner = [by_op[op] for op in outer.branch_ops if op in by_op]
        owners = {addition.owner for addition in inner if addition.owner != outer.owner and not addition.is_layer}
        if len(owners) >= 2 or any(_crosses(trace, outer, trace.calls[owner]) for owner in owners if owner >= 0):
            dropped.add(outer.op)
            continue
        dropped.update(addition.op for addition in inner)
        dropped.update(op for op in outer.shortcut_ops if op in by_op)
    return [addition for addition in additions if addition.op not in dropped]


def _crosses(trace: Trace, addition: Addition, call: ModuleCall) -> bool:
    """Whether an addition that a call does not own begins or ends in it."""
    begin = trace.values[addition.origin].producer
    return call.index == trace.ops[addition.op].call or (begin >= 0 and call.holds(begin))


def opaque_kinds(call: ModuleCall) -> list[str]:
    """The types of arguments of a call that no template can hold (caches, configurations)."""
    return [leaf.kind for leaf in leaves((call.args, call.kwargs)) if isinstance(leaf, Opaque)]


_WHOLE = frozenset(["layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm"])
_INSIDE = _WHOLE | {"rsqrt"}  # what a norm written by hand divides by


def post_addition_norms(run: Trace, block: ModuleCall, additions: list[Addition]) -> dict[int, int]:
    """For each norm after an addition of a block: the value it returns, and the sum it reads."""
    sums = {}
    for addition in additions:
        readers = [run.ops[op] for op in run.readers.get(addition.result, [])]
        if readers and all(block.holds(op.index) for op in readers):
            normed = _normed(run, addition, readers)
            if normed is not None:
                sums[normed] = addition.result
    return sums


def _normed(run: Trace, addition: Addition, readers: list[OpRecord]) -> int | None:
    first = readers[0]
    if len(readers) == 1 and plain_name(first.name) in _WHOLE:
        return first.outputs[0] if len(first.outputs) == 1 else None
    for call in run.enclosing(first.call):
        if call.holds(addition.op):
            return None
        if all(call.holds(op.index) for op in readers) and _is_norm(run, call, addition):
            return call.outputs[0]
    return None


def _is_norm(run: Trace, call: ModuleCall, addition: Addition) -> bool:
    parameters = list(call.module.parameters())
    small = bool(parameters) and all(parameter.dim() == 1 for parameter in parameters)
    divides = any(plain_name(op.name) in _INSIDE for op in run.ops[call.start : call.stop])
    same = len(call.outputs) == 1 and run.values[call.outputs[0]].shape == run.values[addition.result].shape
    return small and divides and same and call.inputs == [addition.result]
