"""From a traced run to the chain of blocks: which module calls are residual blocks, and which can be removed."""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from torch import nn

from shoal.batches import Batch, as_batch, call
from shoal.blocks.adapters import adapter_of, declared_shortcut
from shoal.blocks.additions import (
    Addition,
    add_operands,
    entering_values,
    parallel_parts,
    post_addition_norms,
    residual_additions,
)
from shoal.blocks.control_flow import RngWatch, data_dependent_blocks
from shoal.blocks.graph import Block, BlockGraph, Chain, Unit, note_of, without_removable
from shoal.blocks.hooks import removal_hook_reason, with_forward_hooks_of
from shoal.blocks.operations import STRUCTURE, plain_name
from shoal.blocks.shortcut_modules import extract_shortcut, main_output
from shoal.blocks.sign_analysis import non_negative_values
from shoal.blocks.trace import ModuleCall, Trace, trace_run
from shoal.blocks.verification import verified
from shoal.errors import SurgeryError
from shoal.intake import check_network, plain
from shoal.preserve import check_finite, collecting_seldom, evaluating

_SHORTCUT_ORDER = ("identity", "reshape", "projection")


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
    check_network(model)
    return analyze(model, as_batch(example)).chain


def analyze(model: nn.Module, example: Batch) -> BlockGraph:
    """Trace `model` and analyze its blocks; raises what `trace` raises.

    The graph is that of the plain network where torch.compile wraps it or parts of it.
    """
    check_finite(model)
    with collecting_seldom():
        return _analyzed(plain(model), example)


def _analyzed(model: nn.Module, example: Batch) -> BlockGraph:
    with evaluating(model):
        call(model, example)  # what a network makes in its first run alone (a table of positions) is not in the others
    draws = RngWatch()
    run = trace_run(model, example)
    graph = graph_from_trace(model, run)
    steady = without_removable(graph, data_dependent_blocks(model, example, run, graph.chain.paths, drew=draws.moved))
    return verified(steady, example, drew=draws.moved)


def graph_from_trace(model: nn.Module, run: Trace) -> BlockGraph:
    """The graph of a model from a trace of it."""
    declared = _declared_calls(run)
    free = [
        addition
        for addition in residual_additions(run)
        if not any(call.holds(addition.op) for call in declared.values())
    ]
    around = {outer.index for call in declared.values() for outer in run.enclosing(call.parent)}
    groups = {index: owned for index, owned in _group(run, free).items() if index not in around}
    inner = [run.calls[index].parent for index in groups if index >= 0]
    holders = {outer.index for parent in inner for outer in run.enclosing(parent)}
    signs = non_negative_values(run)
    parts = GraphParts()
    kinds = {type(run.calls[index].module) for index in groups if index >= 0 and run.calls[index].path}
    for module_call in run.calls:
        outside = [outer.index for outer in run.enclosing(module_call.parent)]
        if any(index in declared for index in outside):
            continue
        if module_call.index in declared:
            _add_declared(parts, run, module_call)
        elif (additions := groups.get(module_call.index)) is not None:
            _add_residual(parts, run, module_call, additions, signs, holds=module_call.index in holders)
        elif type(module_call.module) in kinds and not any(index in groups for index in outside):
            _add_sibling(parts, run, module_call)
    if -1 in groups:
        parts.blocks.append(_outside_block())
    chain = Chain(tuple(_with_stages(parts.blocks)), note_of(parts.blocks, run))
    return BlockGraph(
        model,
        run,
        chain,
        parts.shortcut_modules,
        parts.additions,
        parts.calls,
        parts.shortcuts_without_norms,
        parallel=parts.parallel,
    )


@dataclass
class GraphParts:
    """The parts of a `BlockGraph` as they are collected, by block path."""

    blocks: list[Block] = field(default_factory=list)
    shortcut_modules: dict[str, nn.Module] = field(default_factory=dict)
    additions: dict[str, tuple[Addition, ...]] = field(default_factory=dict)
    calls: dict[str, ModuleCall] = field(default_factory=dict)
    shortcuts_without_norms: dict[str, nn.Module] = field(default_factory=dict)
    parallel: dict[str, tuple[Addition, ...]] = field(default_factory=dict)


def _declared_calls(run: Trace) -> dict[int, ModuleCall]:
    """The outermost calls of modules whose class has an adapter, by index."""
    outermost: dict[int, ModuleCall] = {}
    for module_call in run.calls:
        if not module_call.path or adapter_of(module_call.module) is None:
            continue
        if not any(outer.index in outermost for outer in run.enclosing(module_call.parent)):
            outermost[module_call.index] = module_call
    return outermost


def _add_declared(parts: GraphParts, run: Trace, call: ModuleCall) -> None:
    """Add a block that an adapter declares, with its shortcut."""
    if call.path in parts.calls or not call.inputs or not call.outputs:
        return
    reason = _repeated_calls_reason(run, call) or removal_hook_reason(call.module, call.path)
    if reason is None:
        try:
            shortcut = declared_shortcut(call.module, call.path)
        except SurgeryError as error:
            reason = error.message
        else:
            parts.shortcut_modules[call.path] = with_forward_hooks_of(call.module, shortcut)
    parts.additions[call.path] = ()
    parts.calls[call.path] = call
    parts.blocks.append(replace(_plain_block(run, call), shortcut="declared", removable=reason is None, reason=reason))


def _group(run: Trace, additions: list[Addition]) -> dict[int, list[Addition]]:
    """The additions grouped by the call of their block, in execution order."""
    owners = {addition.owner for addition in additions}
    owning = [run.calls[index] for index in owners if index >= 0]
    alike = Counter(type(owner.module) for owner in owning)
    paths = sorted({owner.path for owner in owning})
    groups: dict[int, list[Addition]] = {}
    for addition in additions:
        block = addition.owner
        for outer in run.enclosing(run.calls[addition.owner].parent if addition.owner >= 0 else -1):
            if outer.index in owners and not _holds_chain(outer, paths, alone=alike[type(outer.module)] < 2):
                block = outer.index
        groups.setdefault(block, []).append(addition)
    return groups


def _holds_chain(outer: ModuleCall, paths: Sequence[str], *, alone: bool) -> bool:
    """Whether a module holds a row of blocks in a numbered container, and so is no block itself.

    Numbered names (`stage1`, `stage2`) count as a container in a module that is alone of its class: where several are
    alike they are the blocks, and what is numbered in them (`pos1`, `pos2`) are parts.

    Args:
        outer: the call of the module.
        paths: of all modules that hold an addition, sorted.
        alone: whether no other of them is of its class.
    """
    inside = paths[bisect_left(paths, f"{outer.path}.") : bisect_left(paths, f"{outer.path}/")] if outer.path else paths
    pattern = r"(.*?)(\d+)(\.|$)" if alone else r"((?:.*?\.)??)(\d+)(\.|$)"
    rows: dict[str, set[str]] = {}
    for path in inside:
        numbered = re.match(pattern, path[len(outer.path) :].removeprefix("."))
        if numbered:
            rows.setdefault(numbered.group(1), set()).add(numbered.group(2))
    return any(len(numbers) >= 2 for numbers in rows.values())


def _add_residual(
    parts: GraphParts, run: Trace, call: ModuleCall, additions: list[Addition], signs: frozenset[int], *, holds: bool
) -> None:
    path = call.path
    if path in parts.calls:  # a later call of the same module: the first entry says so already
        return
    reason, assumption = _repeated_calls_reason(run, call), None
    if not path:
        reason = "its addition stands in the forward of the whole network, not in a block of its own"
    elif holds:
        reason = "it holds other blocks, which are removed one by one"
    reason = reason or removal_hook_reason(call.module, path)
    if reason is None:
        try:
            parts.shortcut_modules[path], assumption = extract_shortcut(run, call, additions, non_negative=signs)
        except SurgeryError as error:
            reason = error.message
        else:
            _add_shortcut_without_norms(parts, run, call, additions, signs)
    parts.additions[path] = tuple(additions)
    parts.calls[path] = call
    block = _describe(run, call, additions, reason, assumption)
    parallel = parallel_parts(run, additions) if path else []
    if parallel:
        parts.parallel[path] = tuple(parallel)
        block = replace(block, parallel=tuple(_unit(run, call, part) for part in parallel))
    parts.blocks.append(block)


def _add_shortcut_without_norms(
    parts: GraphParts, run: Trace, call: ModuleCall, additions: list[Addition], signs: frozenset[int]
) -> None:
    norms = post_addition_norms(run, call, additions)
    if norms:
        with suppress(SurgeryError):
            parts.shortcuts_without_norms[call.path], _ = extract_shortcut(
                run, call, additions, non_negative=signs, norms=norms
            )


def _repeated_calls_reason(run: Trace, call: ModuleCall) -> str | None:
    times = len(run.calls_of(call.module))
    if times > 1:
        return f"it is called {times} times, so it cannot go in one place and stay in another"
    return None


def _describe(
    run: Trace, call: ModuleCall, additions: list[Addition], reason: str | None, assumption: str | None
) -> Block:
    units = tuple(_unit(run, call, addition) for addition in additions)
    origin = additions[0].origin
    entry = next(iter(entering_values(run, origin, call.inputs)), origin)
    shortcut = max((addition.shortcut for addition in additions), key=_SHORTCUT_ORDER.index)
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
        removable_activation_assumption=assumption,
    )


def _unit(run: Trace, call: ModuleCall, addition: Addition) -> Unit:
    # The modules themselves, not their paths: one that blocks share is known by the path it has outside of them.
    leaves_of_branch: dict[str, nn.Module] = {}
    for op in addition.branch_ops:
        inner = run.ops[op].call
        holder = run.calls[inner] if inner >= 0 else call
        if inner not in run.parents or any(True for _ in holder.module.parameters(recurse=False)):
            leaves_of_branch.setdefault(holder.path, holder.module)
    with_parameters = [
        path for path, module in leaves_of_branch.items() if any(True for _ in module.parameters(recurse=True))
    ]
    number = sum(1 for op in run.ops[call.start : addition.op] if add_operands(op) is not None)
    operands = add_operands(run.ops[addition.op])
    stream_first = operands is not None and operands[0] == addition.stream
    path = run.calls[addition.owner].path if addition.owner >= 0 else ""
    return Unit(path, addition.shortcut, tuple(with_parameters), number, stream_first)


def _activation(run: Trace, call: ModuleCall, last: Addition, result: int) -> str | None:
    names = []
    for op in run.ops[last.op + 1 : call.stop]:
        on_the_way = any(run.depends(result, out) and run.depends(out, last.result) for out in op.outputs)
        if on_the_way and plain_name(op.name) not in STRUCTURE:
            names.append(plain_name(op.name))
    return "+".join(names) or None


def _add_sibling(parts: GraphParts, run: Trace, call: ModuleCall) -> None:
    """Add a module of the same class as a residual block that has no addition: listed, with the reason."""
    if call.path in parts.calls or not call.inputs or not call.outputs:
        return
    parts.calls[call.path] = call
    parts.blocks.append(_plain_block(run, call))


def _plain_block(run: Trace, call: ModuleCall) -> Block:
    """The description of a block without an addition."""
    return Block(
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


def _outside_block() -> Block:
    reason = "its addition stands outside every module"
    return Block("", "", 0, (), (), None, None, (), (), 0, removable=False, reason=reason)


def _with_stages(blocks: list[Block]) -> list[Block]:
    stage, shape, staged = 0, None, []
    for block in blocks:
        if block.out_shape != shape:
            stage, shape = stage + 1, block.out_shape
        staged.append(replace(block, stage=stage))
    return staged
