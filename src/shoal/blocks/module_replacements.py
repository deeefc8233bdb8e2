"""Replacement modules for removed blocks and removed single units.

A whole block gives way to its shortcut. A slice of the recorded run for a single unit would freeze the other units of
the block as they ran once, with the sizes, caches and modes of that run. So the code of such a block stays as it is:
the modules that are called once and feed nothing but the removed branch are replaced by stubs that return zeros, and
the addition then adds zero, which changes no number.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from shoal.batches import Batch, call
from shoal.blocks.additions import Addition, add_operands
from shoal.blocks.graph import Block, BlockGraph
from shoal.blocks.hooks import hook_reason
from shoal.blocks.interception import intercept_additions
from shoal.blocks.template import Opaque, TensorRef, substitute, tensor_refs
from shoal.blocks.trace import ModuleCall, Trace
from shoal.errors import ModelRaisedError, SurgeryError, UnknownBlockError
from shoal.plan import Remove
from shoal.preserve import evaluating, no_hook, swapped


def module_replacements(graph: BlockGraph, removals: Sequence[Remove]) -> dict[str, nn.Module]:
    """By module path its replacement: the shortcut of a whole block; stubs of zeros for single units.

    Raises:
        KeyError: a block that has no shortcut; see `surgery.check_removable`.
        UnknownBlockError, SurgeryError: a unit that cannot be taken out.
    """
    modules: dict[str, nn.Module] = {}
    units: dict[str, list[int]] = {}
    for removal in removals:
        if removal.unit is not None:
            units.setdefault(removal.path, []).append(removal.unit)
        else:
            modules[removal.path] = (
                graph.shortcuts_without_norms if removal.norms == "drop" else graph.shortcut_modules
            )[removal.path]
    for path, numbers in units.items():
        modules |= unit_replacements(graph, path, numbers)
    return modules


def normalize_removals(graph: BlockGraph, removals: Sequence[Remove]) -> list[Remove]:
    """The same removals in chain order; a block that loses all its units is removed whole, where it can be."""
    normalized: list[Remove] = []
    for block in graph.chain:
        local = [removal for removal in removals if removal.path == block.path]
        units = sorted(removal.unit for removal in local if removal.unit is not None)
        if block.removable and units and units == list(range(len(block.removable_units))):
            local = [Remove(path=block.path)]
        normalized += sorted(local, key=lambda removal: removal.unit or 0)
    return normalized


def unit_replacements(graph: BlockGraph, path: str, numbers: Iterable[int]) -> dict[str, nn.Module]:
    """Replacements by module path for removing these units of a block; cached for each set of units.

    Args:
        graph: of the network; it is run on its example to check the cut, and left as it was.
        path: of the block.
        numbers: of its units, from 0.

    Raises:
        UnknownBlockError: no such block or unit.
        SurgeryError: the branch cannot be taken out, with the reason.
    """
    key = (path, frozenset(numbers))
    if key not in graph.unit_stub_cache:
        graph.unit_stub_cache[key] = _find_replacements(graph, graph.chain[path], sorted(key[1]))
    return graph.unit_stub_cache[key]


def block_without_units(graph: BlockGraph, path: str, numbers: Iterable[int]) -> nn.Module:
    """The block at `path` without these units, as a module of its own; it shares all other parts with the block.

    Raises:
        UnknownBlockError, SurgeryError: as for `unit_replacements`.
    """
    stubs = unit_replacements(graph, path, numbers)
    inside = {name.removeprefix(f"{path}."): stub for name, stub in stubs.items()}
    return with_modules(graph.model.get_submodule(path), inside)


def with_modules(module: nn.Module, replacements: Mapping[str, nn.Module]) -> nn.Module:
    """A shallow copy of a module with others in the place of some inside it, by their paths in it."""
    if "" in replacements:
        return replacements[""]
    variant = copy.copy(module)
    variant.__dict__["_modules"] = dict(module._modules)
    for name in {path.partition(".")[0] for path in replacements}:
        inner = {
            path.removeprefix(name).removeprefix("."): stub
            for path, stub in replacements.items()
            if path == name or path.startswith(f"{name}.")
        }
        variant._modules[name] = with_modules(module.get_submodule(name), inner)
    return variant


def removable_units(graph: BlockGraph, block: Block) -> list[int]:
    """The units that can be removed alone from a block of several."""
    if len(block.removable_units) < 2:
        return []
    removable = []
    for number in range(len(block.removable_units)):
        try:
            unit_replacements(graph, block.path, [number])
        except SurgeryError:
            continue
        removable.append(number)
    return removable


def branch_call(graph: BlockGraph, path: str, number: int) -> ModuleCall | None:
    """The call of the module that returns what a unit adds; None where no single module does that and nothing else.

    Args:
        graph: of the network.
        path: of the block.
        number: of its unit, from 0; of the only one, too.
    """
    run, block_call = graph.trace, graph.calls[path]
    additions = [graph.unit_additions(path)[number]]
    last = _last_calls(run, block_call, additions, _idle_calls(run, block_call, additions))
    return last[0] if len(last) == 1 else None


def vacated_reason(graph: BlockGraph, path: str, number: int, inside: ModuleCall, zeros: nn.Module) -> str:
    """Why a unit adds something else than what one module returns, or cannot do without it; empty where it can.

    Args:
        graph: of the network; it is run on its example and left as it was.
        path: of the block.
        number: of its unit.
        inside: the call of that module.
        zeros: what stands in its place for the trial, and returns zeros.
    """
    hooked = hook_reason(inside.module, inside.path)
    return hooked or _failure_reason(graph, graph.chain[path], [number], {inside.path: zeros}, [inside])


def _find_replacements(graph: BlockGraph, block: Block, numbers: list[int]) -> dict[str, nn.Module]:
    _check_units(graph, block, numbers)
    run, block_call = graph.trace, graph.calls[block.path]
    additions = [graph.unit_additions(block.path)[number] for number in numbers]
    idle = _idle_calls(run, block_call, additions)
    last = _last_calls(run, block_call, additions, idle)
    if not last:
        raise SurgeryError(
            f"{_unit_names(block, numbers)} cannot be removed: the block's own code computes it, not a module"
        )
    hooked = next(filter(None, (hook_reason(inner.module, inner.path) for inner in idle)), None)
    if hooked is not None:
        raise SurgeryError(f"{_unit_names(block, numbers)} cannot be removed: {hooked}")
    writable = any(getattr(module, "inplace", False) for module in block_call.module.modules())
    failure = ""
    for calls in (idle, last):  # where the code between them asks for more than zeros, only the last ones go
        stubs = _zero_stubs(run, calls, last, writable=writable)
        failure = _failure_reason(graph, block, numbers, stubs, [run for run in calls if run.path in stubs])
        if not failure:
            return stubs
    raise SurgeryError(f"{_unit_names(block, numbers)} cannot be removed: {failure}")


def _unit_names(block: Block, numbers: list[int]) -> str:
    listed = ", ".join(map(str, numbers))
    return f"unit {listed} of '{block.path}'" if len(numbers) == 1 else f"the units {listed} of '{block.path}'"


def _check_units(graph: BlockGraph, block: Block, numbers: list[int]) -> None:
    many = len(block.removable_units)
    if many < 2:
        raise SurgeryError(
            f"the block '{block.path}' has {many or 'no'} unit{'' if many == 1 else 's'}, not several",
            "Remove the block itself.",
        )
    wrong = next((number for number in numbers if not 0 <= number < many), None)
    if wrong is not None:
        raise UnknownBlockError(f"the block '{block.path}' has no unit {wrong}", f"It has 0 to {many - 1}.")
    if not block.path or len(graph.trace.calls_of(graph.calls[block.path].module)) > 1:
        raise SurgeryError(f"{_unit_names(block, numbers)} cannot be removed: {block.reason}")


def _idle_calls(run: Trace, block: ModuleCall, removed: list[Addition]) -> list[ModuleCall]:
    """The largest module calls in a block that are not needed once these additions have lost their branch."""
    before, after = _needed_ops(run, block, []), _needed_ops(run, block, removed)
    calls: list[ModuleCall] = []
    for module_call in run.calls[block.index + 1 :]:
        if module_call.start >= block.stop:
            break
        ops = range(module_call.start, module_call.stop)
        idle = any(op in before for op in ops) and not any(op in after for op in ops)
        inside = any(outer.start <= module_call.start and module_call.stop <= outer.stop for outer in calls)
        if (
            idle
            and not inside
            and module_call.path.startswith(block.path + ".")
            and _is_called_here_only(run, module_call)
        ):
            calls.append(module_call)
    return calls


def _is_called_here_only(run: Trace, call: ModuleCall) -> bool:
    calls = [inner for module in call.module.modules() for inner in run.calls_of(module)]
    same = [inner for inner in calls if inner.module is call.module]
    return len(same) == 1 and all(call.start <= inner.start and inner.stop <= call.stop for inner in calls)


def _needed_ops(run: Trace, block: ModuleCall, removed: list[Addition]) -> set[int]:
    """The operations of a block on which anything outside of it depends, without the branches of `removed`."""
    cut: dict[int, set[int]] = {}
    for addition in removed:
        cut.setdefault(addition.op, set()).add(addition.branch)
    outputs = set(tensor_refs(run.output))
    pending = [
        value
        for value in run.made_in(block)
        if value in outputs or any(op >= block.stop for op in run.readers.get(value, []))
    ]
    needed: set[int] = set()
    while pending:
        op = run.ops[run.values[pending.pop()].producer]
        if op.index in needed or not block.holds(op.index):
            continue
        needed.add(op.index)
        read = [value for value in op.inputs if value not in cut.get(op.index, ())]
        pending += [value for value in read if run.values[value].producer >= 0]
    return needed


def _last_calls(run: Trace, block: ModuleCall, removed: list[Addition], idle: list[ModuleCall]) -> list[ModuleCall]:
    """The idle calls that feed a removed branch directly, with no other idle call in between."""
    calls: dict[int, ModuleCall] = {}
    pending, seen = [addition.branch for addition in removed], set()
    while pending:
        value = pending.pop()
        producer = run.values[value].producer
        if value in seen or producer < 0 or not block.holds(producer):
            continue
        seen.add(value)
        inside = next((call for call in idle if call.holds(producer)), None)
        if inside is not None:
            calls[inside.index] = inside
        else:
            pending += run.ops[producer].inputs
    return [call for call in idle if call.index in calls]


def _zero_stubs(run: Trace, calls: list[ModuleCall], last: list[ModuleCall], *, writable: bool) -> dict[str, nn.Module]:
    """A stub for each call; a call that is not the last may keep its module if its output shape is unknown."""
    stubs: dict[str, nn.Module] = {}
    for module_call in calls:
        changed = any(value in op.changed for op in run.ops[module_call.stop :] for value in module_call.outputs)
        try:
            stubs[module_call.path] = ZeroStub(run, module_call, writable=writable or changed)
        except SurgeryError:
            if module_call in last:
                raise
    return stubs


def _failure_reason(
    graph: BlockGraph, block: Block, numbers: list[int], swaps: dict[str, nn.Module], vacated: list[ModuleCall]
) -> str:
    """Why replacing these modules does not remove these units; empty where it does."""
    if graph.example is None:
        return ""
    run, block_call = graph.trace, graph.calls[block.path]
    remaining = [
        op.index
        for op in run.ops[block_call.start : block_call.stop]
        if not any(stub_call.holds(op.index) for stub_call in vacated)
    ]
    additions = [op for op in remaining if add_operands(run.ops[op]) is not None]
    places = {number: graph.unit_additions(block.path)[number] for number in numbers}
    units = tuple(
        replace(block.removable_units[number], addition=additions.index(place.op)) for number, place in places.items()
    )
    seen: dict[int, bool] = {}

    def look(path: str, position: int, stream: Tensor, branch: Tensor) -> None:
        shape = run.values[places[numbers[position]].branch].shape
        seen[position] = branch.shape[1:] == shape[1:] and not bool(torch.count_nonzero(branch))

    example: Batch = graph.example
    model = graph.model
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


@dataclass(frozen=True)
class StubShape:
    """The shape of an output: that of an argument, except for one axis at most."""

    argument: int | str
    axis: int | None
    size: int
    dtype: torch.dtype


class ZeroStub(nn.Module):
    """Takes the arguments of the module it replaces and returns zeros in the shape of its output.

    The zeros take no memory (one number, expanded), unless `writable`. What nobody reads is None.

    Args:
        run: the run in which the module was called.
        call: its one call.
        writable: whether somebody may change what it returns in place.

    Raises:
        SurgeryError: the shape it returned does not follow from that of an argument.
    """

    def __init__(self, run: Trace, call: ModuleCall, *, writable: bool) -> None:
        super().__init__()
        read = {
            value for value in tensor_refs(call.output) if any(op >= call.stop for op in run.readers.get(value, []))
        }
        self._output, self._writable = _keep_only(call.output, read), writable
        self._shapes = {value: _shape_of(run, call, value) for value in sorted(read)}
        for name, value in vars(call.module).items():  # plain attributes that the network's code may ask for
            if not name.startswith("_") and name not in self.__dict__ and isinstance(value, (int, float, str)):
                self.__dict__[name] = value
        for name, _ in call.module.named_parameters(recurse=False):
            self.register_parameter(name, None)
        self.register_forward_hook(no_hook)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return zeros, in the containers that the module returned."""
        return substitute(
            self._output, {value: self._zeros(shape, args, kwargs) for value, shape in self._shapes.items()}
        )

    def _zeros(self, spec: StubShape, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        like: Tensor = args[spec.argument] if isinstance(spec.argument, int) else kwargs[spec.argument]
        shape = list(like.shape)
        if spec.axis is not None:
            shape[spec.axis] = spec.size
        dtype = like.dtype if like.is_floating_point() else spec.dtype
        if self._writable:
            return torch.zeros(shape, dtype=dtype, device=like.device)
        return torch.zeros((), dtype=dtype, device=like.device).expand(shape)


def _keep_only(item: Any, values: set[int]) -> Any:
    """A template with None for every tensor but these, and for what no template can hold."""
    if isinstance(item, TensorRef):
        return item if item.value in values else None
    if isinstance(item, Opaque):
        return None
    if isinstance(item, Mapping):
        return {key: _keep_only(value, values) for key, value in item.items()}
    if isinstance(item, (tuple, list)):
        return type(item)(_keep_only(value, values) for value in item)
    return item


def _shape_of(run: Trace, call: ModuleCall, value: int) -> StubShape:
    made = run.values[value]
    arguments: list[tuple[int | str, Any]] = [*enumerate(call.args), *call.kwargs.items()]
    tensors = [(key, run.values[item.value]) for key, item in arguments if isinstance(item, TensorRef)]
    tensors.sort(key=lambda pair: pair[1].dtype != made.dtype)  # a mask of the same shape is not what is worked on
    for key, record in tensors:
        if record.shape == made.shape:
            return StubShape(key, None, 0, made.dtype)
    for key, record in tensors:
        axes = [axis for axis, (a, b) in enumerate(zip(record.shape, made.shape, strict=False)) if a != b]
        # Features stand on the last axis, or behind the batch in an image; other axes are as long as the input is.
        features = {len(made.shape) - 1, 1 if len(made.shape) == 4 else -1}
        if len(record.shape) == len(made.shape) >= 2 and len(axes) == 1 and axes[0] in features:
            return StubShape(key, axes[0], made.shape[axes[0]], made.dtype)
    raise SurgeryError(f"the shape of what '{call.path}' returns does not follow from what it is given")
