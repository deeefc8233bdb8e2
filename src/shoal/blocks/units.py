"""Take single units out of a block: its code stays as it is, the modules of the branch make way for zeros.

A slice of the recorded run, as of a whole block, would write down the other units of the block as they ran once, with
the sizes, caches and modes of that run. So the code of the block is left alone. Of its modules those go that are called
once and feed nothing but the removed branch; the addition then adds zero, which changes no number.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from shoal.batches import Batch, call
from shoal.blocks.additions import Addition, add_operands
from shoal.blocks.chain import Block
from shoal.blocks.graph import BlockGraph
from shoal.blocks.hooks import hook_reason
from shoal.blocks.interception import intercept_additions
from shoal.blocks.template import tensor_refs
from shoal.blocks.trace import ModuleCall, Trace
from shoal.blocks.zero_stub import ZeroStub
from shoal.errors import ModelRaisedError, SurgeryError, UnknownBlockError
from shoal.preserve import evaluating, swapped


def unit_replacements(anatomy: BlockGraph, path: str, numbers: Iterable[int]) -> dict[str, nn.Module]:
    """What stands in the place of which module when these units of a block go; found once for each set of units.

    Args:
        anatomy: of the network; it is run on its example to check the cut, and left as it was.
        path: of the block.
        numbers: of its units, from 0.

    Raises:
        UnknownBlockError: no such block or unit.
        SurgeryError: the branch cannot be taken out, with the reason.
    """
    key = (path, frozenset(numbers))
    if key not in anatomy.cuts:
        anatomy.cuts[key] = _found(anatomy, anatomy.chain[path], sorted(key[1]))
    return anatomy.cuts[key]


def removable_units(anatomy: BlockGraph, block: Block) -> list[int]:
    """The units of a block of several that can be taken out alone."""
    if len(block.units) < 2:
        return []
    found = []
    for number in range(len(block.units)):
        try:
            unit_replacements(anatomy, block.path, [number])
        except SurgeryError:
            continue
        found.append(number)
    return found


def _found(anatomy: BlockGraph, block: Block, numbers: list[int]) -> dict[str, nn.Module]:
    _check_named(anatomy, block, numbers)
    run, one = anatomy.trace, anatomy.calls[block.path]
    gone = [anatomy.additions[block.path][number] for number in numbers]
    idle = _idle_calls(run, one, gone)
    last = _last_calls(run, one, gone, idle)
    if not last:
        raise SurgeryError(
            f"{_named(block, numbers)} cannot be removed: the block's own code computes it, no module that could go"
        )
    hooked = next(filter(None, (hook_reason(inner.module, inner.path) for inner in idle)), None)
    if hooked is not None:
        raise SurgeryError(f"{_named(block, numbers)} cannot be removed: {hooked}")
    writable = any(getattr(module, "inplace", False) for module in one.module.modules())
    failure = ""
    for calls in (idle, last):  # where the code between them asks for more than zeros, only the last ones go
        swaps = _vacated(run, calls, last, writable=writable)
        failure = _failure(anatomy, block, numbers, swaps, [run for run in calls if run.path in swaps])
        if not failure:
            return swaps
    raise SurgeryError(f"{_named(block, numbers)} cannot be removed: {failure}")


def _named(block: Block, numbers: list[int]) -> str:
    listed = ", ".join(map(str, numbers))
    return f"unit {listed} of '{block.path}'" if len(numbers) == 1 else f"the units {listed} of '{block.path}'"


def _check_named(anatomy: BlockGraph, block: Block, numbers: list[int]) -> None:
    many = len(block.units)
    if many < 2:
        raise SurgeryError(
            f"the block '{block.path}' has {many or 'no'} unit{'' if many == 1 else 's'}, not several",
            "Remove the block itself.",
        )
    wrong = next((number for number in numbers if not 0 <= number < many), None)
    if wrong is not None:
        raise UnknownBlockError(f"the block '{block.path}' has no unit {wrong}", f"It has 0 to {many - 1}.")
    if not block.path or len(anatomy.trace.calls_of(anatomy.calls[block.path].module)) > 1:
        raise SurgeryError(f"{_named(block, numbers)} cannot be removed: {block.reason}")


def _idle_calls(run: Trace, block: ModuleCall, gone: list[Addition]) -> list[ModuleCall]:
    """The largest module calls in a block that nobody needs once these additions have lost their branch."""
    before, after = _needed(run, block, []), _needed(run, block, gone)
    found: list[ModuleCall] = []
    for one in run.calls[block.index + 1 :]:
        if one.start >= block.stop:
            break
        ops = range(one.start, one.stop)
        idle = any(op in before for op in ops) and not any(op in after for op in ops)
        inside = any(outer.start <= one.start and one.stop <= outer.stop for outer in found)
        if idle and not inside and one.path.startswith(block.path + ".") and _called_here_alone(run, one):
            found.append(one)
    return found


def _called_here_alone(run: Trace, one: ModuleCall) -> bool:
    calls = [other for module in one.module.modules() for other in run.calls_of(module)]
    own = [other for other in calls if other.module is one.module]
    return len(own) == 1 and all(one.start <= other.start and other.stop <= one.stop for other in calls)


def _needed(run: Trace, block: ModuleCall, gone: list[Addition]) -> set[int]:
    """The operations of a block on which anything outside of it depends, the branches of `gone` cut off."""
    cut = {one.op: one.stream for one in gone}
    outputs = set(tensor_refs(run.output))
    pending = [
        value.index
        for value in run.values
        if value.producer >= 0
        and block.holds(value.producer)
        and (value.index in outputs or any(op >= block.stop for op in run.readers.get(value.index, [])))
    ]
    found: set[int] = set()
    while pending:
        op = run.ops[run.values[pending.pop()].producer]
        if op.index in found or not block.holds(op.index):
            continue
        found.add(op.index)
        read = [cut[op.index]] if op.index in cut else op.inputs
        pending += [value for value in read if run.values[value].producer >= 0]
    return found


def _last_calls(run: Trace, block: ModuleCall, gone: list[Addition], idle: list[ModuleCall]) -> list[ModuleCall]:
    """Those of the idle calls from which a removed branch comes without another one in between."""
    found: dict[int, ModuleCall] = {}
    pending, seen = [one.branch for one in gone], set()
    while pending:
        value = pending.pop()
        producer = run.values[value].producer
        if value in seen or producer < 0 or not block.holds(producer):
            continue
        seen.add(value)
        inside = next((one for one in idle if one.holds(producer)), None)
        if inside is not None:
            found[inside.index] = inside
        else:
            pending += run.ops[producer].inputs
    return [one for one in idle if one.index in found]


def _vacated(run: Trace, calls: list[ModuleCall], last: list[ModuleCall], *, writable: bool) -> dict[str, nn.Module]:
    """A module of zeros for each call; one that is not the last may stay where its shape is its own affair."""
    found: dict[str, nn.Module] = {}
    for one in calls:
        changed = any(value in op.changed for op in run.ops[one.stop :] for value in one.outputs)
        try:
            found[one.path] = ZeroStub(run, one, writable=writable or changed)
        except SurgeryError:
            if one in last:
                raise
    return found


def _failure(
    anatomy: BlockGraph, block: Block, numbers: list[int], swaps: dict[str, nn.Module], vacated: list[ModuleCall]
) -> str:
    """Why the network without these modules is not the network without these units; empty where it is."""
    if anatomy.example is None:
        return ""
    run, one = anatomy.trace, anatomy.calls[block.path]
    left = [op.index for op in run.ops[one.start : one.stop] if not any(other.holds(op.index) for other in vacated)]
    additions = [op for op in left if add_operands(run.ops[op]) is not None]
    places = {number: anatomy.additions[block.path][number] for number in numbers}
    units = tuple(replace(block.units[number], addition=additions.index(place.op)) for number, place in places.items())
    seen: dict[int, bool] = {}

    def look(path: str, position: int, stream: Tensor, branch: Tensor) -> None:
        shape = run.values[places[numbers[position]].branch].shape
        seen[position] = branch.shape[1:] == shape[1:] and not bool(torch.count_nonzero(branch))

    example: Batch = anatomy.example
    model = anatomy.model
    with evaluating(model), swapped(model, swaps):
        try:
            call(model, example)  # as it will run, without hooks
            with intercept_additions(model, [replace(block, units=units)], look):
                call(model, example)
        except ModelRaisedError as error:
            return f"the network does not run without it: {error.__cause__}"
    return (
        "" if len(seen) == len(numbers) and all(seen.values()) else "something else than its modules feeds the branch"
    )
