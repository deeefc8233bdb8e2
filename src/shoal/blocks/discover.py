"""From a traced run to the chain: which module calls are the residual blocks, and what can be taken out of them."""

import re
from dataclasses import dataclass, field, replace

from torch import nn

from shoal.batches import Batch, as_batch, call
from shoal.blocks.additions import Addition, add_operands, residual_additions
from shoal.blocks.chain import Block, Chain, Unit
from shoal.blocks.operations import STRUCTURE, plain_name
from shoal.blocks.remainder import main_output, remainder_of
from shoal.blocks.signs import non_negative_values
from shoal.blocks.trace import Call, Trace, trace_run
from shoal.errors import ModelRaisedError, SurgeryError
from shoal.preserve import check_finite, evaluating, swapped

_SHORTCUT_ORDER = ("identity", "reshape", "projection")


@dataclass(frozen=True)
class Anatomy:
    """A traced network: its chain, and for every removable block the module that is left without its branches.

    The remainders share parameters with `model`; surgery copies them.
    """

    model: nn.Module
    trace: Trace
    chain: Chain
    remainders: dict[str, nn.Module]
    additions: dict[str, tuple[Addition, ...]]
    calls: dict[str, Call] = field(default_factory=dict)


def trace(model: nn.Module, example: object) -> Chain:
    """The residual blocks of any network, found by running it on `example`.

    Args:
        model: any module; it is left as it was.
        example: a mini-batch as the model takes it: a tensor, `(inputs, target)`, or a dict of tensors.

    Raises:
        ModelRaisedError: the model raised on the example.
        TraceError: no output depends on the input.
        NonFiniteError: the weights hold NaN or Inf.
    """
    return dissect(model, as_batch(example)).chain


def dissect(model: nn.Module, example: Batch) -> Anatomy:
    """Trace `model` and take its chain apart; see `trace` for what is raised."""
    check_finite(model)
    with evaluating(model):
        call(model, example)  # what a network makes in its first run alone (a table of positions) is not in the others
    run = trace_run(model, example)
    return _verified(anatomy_of(model, run), example)


def _verified(anatomy: Anatomy, example: Batch) -> Anatomy:
    """The anatomy with the blocks marked whose absence the network's own code does not bear.

    A container may ask a block for more than its result (torch's TransformerEncoder looks into its first layer), and a
    shortcut may have the batch size written into it; so the network is run without the blocks, on one sample. One run
    for all of them mostly says it; only if that fails is each tried alone.
    """
    one = example.take(1)
    if not anatomy.remainders or _runs_with(anatomy, anatomy.remainders, one) is None:
        return anatomy
    failures = {
        path: failure
        for path, remainder in anatomy.remainders.items()
        if (failure := _runs_with(anatomy, {path: remainder}, one)) is not None
    }
    blocks = tuple(
        replace(block, removable=False, reason=f"the network does not run without it: {failures[block.path]}")
        if block.path in failures
        else block
        for block in anatomy.chain
    )
    remainders = {path: one for path, one in anatomy.remainders.items() if path not in failures}
    return replace(anatomy, chain=Chain(blocks, _note(list(blocks))), remainders=remainders)


def _runs_with(anatomy: Anatomy, remainders: dict[str, nn.Module], example: Batch) -> str | None:
    """None if the network runs with these remainders in place of their blocks, else what it raised."""
    with evaluating(anatomy.model), swapped(anatomy.model, remainders):
        try:
            call(anatomy.model, example)
        except ModelRaisedError as error:
            return str(error.__cause__)
    return None


def anatomy_of(model: nn.Module, run: Trace) -> Anatomy:
    """The anatomy of a model from a trace of it."""
    groups = _group(run, residual_additions(run))
    signs = non_negative_values(run)
    found = _Found()
    kinds = {type(run.calls[index].module) for index in groups if index >= 0 and run.calls[index].path}
    for one in run.calls:
        if one.index in groups:
            _add_residual(found, run, one, groups[one.index], signs)
        elif type(one.module) in kinds and not any(outer.index in groups for outer in run.enclosing(one.parent)):
            _add_sibling(found, run, one)
    if -1 in groups:
        found.blocks.append(_outside_block())
    chain = Chain(tuple(_staged(found.blocks)), _note(found.blocks))
    return Anatomy(model, run, chain, found.remainders, found.additions, found.calls)


@dataclass
class _Found:
    blocks: list[Block] = field(default_factory=list)
    remainders: dict[str, nn.Module] = field(default_factory=dict)
    additions: dict[str, tuple[Addition, ...]] = field(default_factory=dict)
    calls: dict[str, Call] = field(default_factory=dict)


def _group(run: Trace, additions: list[Addition]) -> dict[int, list[Addition]]:
    """The additions by the call of the block they belong to, in the order the blocks ran."""
    owners = {one.owner for one in additions}
    groups: dict[int, list[Addition]] = {}
    for one in additions:
        block = one.owner
        for outer in run.enclosing(run.calls[one.owner].parent if one.owner >= 0 else -1):
            if outer.index in owners and not _holds_chain(run, outer, owners):
                block = outer.index
        groups.setdefault(block, []).append(one)
    return groups


def _holds_chain(run: Trace, outer: Call, owners: set[int]) -> bool:
    """Whether a module holds a row of blocks in a numbered container, and so is no block itself."""
    prefix = outer.path + "." if outer.path else ""
    rows: dict[str, set[str]] = {}
    for index in owners:
        path = run.calls[index].path if index >= 0 else ""
        if index == outer.index or not path.startswith(prefix) or path == outer.path:
            continue
        numbered = re.match(r"(.*?)(\d+)(\.|$)", path[len(prefix) :])
        if numbered:
            rows.setdefault(numbered.group(1), set()).add(numbered.group(2))
    return any(len(numbers) >= 2 for numbers in rows.values())


def _add_residual(found: _Found, run: Trace, call: Call, additions: list[Addition], signs: frozenset[int]) -> None:
    path = call.path
    if path in found.calls:  # a later call of the same module: the first entry says so already
        return
    reason, premise = _called_once(run, call), None
    if not path:
        reason = "its addition stands in the forward of the whole network, not in a block of its own"
    if reason is None:
        try:
            found.remainders[path], premise = remainder_of(run, call, additions, non_negative=signs)
        except SurgeryError as error:
            reason = error.message
    found.additions[path] = tuple(additions)
    found.calls[path] = call
    found.blocks.append(_describe(run, call, additions, reason, premise))


def _called_once(run: Trace, call: Call) -> str | None:
    times = len(run.calls_of(call.module))
    if times > 1:
        return f"it is called {times} times, so it cannot go in one place and stay in another"
    return None


def _describe(run: Trace, call: Call, additions: list[Addition], reason: str | None, premise: str | None) -> Block:
    units = tuple(_unit(run, call, one) for one in additions)
    entry = next((value for value in call.inputs if run.depends(additions[0].origin, value)), additions[0].origin)
    shortcut = max((one.shortcut for one in additions), key=_SHORTCUT_ORDER.index)
    try:
        result = main_output(run, call, additions)
    except SurgeryError:
        result = additions[-1].result
    return Block(
        path=call.path,
        kind=type(call.module).__name__,
        stage=0,
        units=units,
        branch=tuple(path for unit in units for path in unit.branch),
        shortcut=shortcut,
        activation=_activation(run, call, additions[-1], result),
        in_shape=run.values[entry].shape[1:],
        out_shape=run.values[result].shape[1:],
        params=sum(parameter.numel() for parameter in call.module.parameters()),
        removable=reason is None,
        reason=reason,
        tail=premise,
    )


def _unit(run: Trace, call: Call, one: Addition) -> Unit:
    # The modules themselves, not their paths: one that blocks share is known by the path it has outside of them.
    leaves_of_branch: dict[str, nn.Module] = {}
    parents = {other.parent for other in run.calls}
    for op in one.branch_ops:
        inner = run.ops[op].call
        holder = run.calls[inner] if inner >= 0 else call
        if inner not in parents or any(True for _ in holder.module.parameters(recurse=False)):
            leaves_of_branch.setdefault(holder.path, holder.module)
    with_parameters = [
        path for path, module in leaves_of_branch.items() if any(True for _ in module.parameters(recurse=True))
    ]
    number = sum(1 for op in run.ops[call.start : one.op] if add_operands(op) is not None)
    operands = add_operands(run.ops[one.op])
    stream_first = operands is not None and operands[0] == one.stream
    path = run.calls[one.owner].path if one.owner >= 0 else ""
    return Unit(path, one.shortcut, tuple(with_parameters), number, stream_first)


def _activation(run: Trace, call: Call, last: Addition, result: int) -> str | None:
    names = []
    for op in run.ops[last.op + 1 : call.stop]:
        on_the_way = any(run.depends(result, out) and run.depends(out, last.result) for out in op.outputs)
        if on_the_way and plain_name(op.name) not in STRUCTURE:
            names.append(plain_name(op.name))
    return "+".join(names) or None


def _add_sibling(found: _Found, run: Trace, call: Call) -> None:
    """A module of the same class as a residual block that adds nothing: listed, with the reason."""
    if call.path in found.calls or not call.inputs or not call.outputs:
        return
    found.calls[call.path] = call
    found.blocks.append(
        Block(
            path=call.path,
            kind=type(call.module).__name__,
            stage=0,
            units=(),
            branch=(),
            shortcut=None,
            activation=None,
            in_shape=run.values[call.inputs[0]].shape[1:],
            out_shape=run.values[call.outputs[0]].shape[1:],
            params=sum(parameter.numel() for parameter in call.module.parameters()),
            removable=False,
            reason="it has no shortcut: nothing would be left of it",
        )
    )


def _outside_block() -> Block:
    reason = "its addition stands outside every module"
    return Block("", "", 0, (), (), None, None, (), (), 0, removable=False, reason=reason)


def _staged(blocks: list[Block]) -> list[Block]:
    stage, shape, staged = 0, None, []
    for block in blocks:
        if block.out_shape != shape:
            stage, shape = stage + 1, block.out_shape
        staged.append(replace(block, stage=stage))
    return staged


def _note(blocks: list[Block]) -> str | None:
    if not any(block.units for block in blocks):
        return "no residual block: no addition of this network joins a branch and a shortcut"
    if not any(block.removable for block in blocks):
        return "no removable block: see the reason of each"
    return None
