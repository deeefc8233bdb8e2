"""Run a network once and record it: every torch function, every module call, who read whose output.

Hooks alone do not see a functional addition, and symbolic tracing fails on many networks; module hooks together with a
`TorchFunctionMode` see both. Nothing is kept of the tensors but shape and dtype, so a trace costs the memory of one
forward and no more.
"""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from shoal.batches import Batch, call
from shoal.blocks.hooks import has_forward_hooks
from shoal.blocks.host_state import HostState
from shoal.blocks.operations import OpSignature, bind
from shoal.blocks.template import TensorRef, template, tensor_refs
from shoal.errors import TraceError
from shoal.offloaded import loading_unwatched
from shoal.preserve import evaluating

# Functions through which a number leaves the graph, so that Python may decide by it.
_ESCAPES = frozenset(
    [
        "item",
        "tolist",
        "numpy",
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
        "__array__",
        "__complex__",
        "__contains__",
        "__reduce_ex__",
        "equal",
        "allclose",
        "is_nonzero",
        "__format__",
        "__repr__",
        # What gives the memory itself away: a change through it is not seen.
        "storage",
        "untyped_storage",
        "_typed_storage",
        "__dlpack__",
        "data_ptr",
    ]
)

# They give a tensor other memory, as `x.data = y` does, and leave its version as it was.
_REPLACES = frozenset(["resize_", "resize_as_", "set_"])


@dataclass(frozen=True)
class TensorRecord:
    """One tensor of the run. `origin` is 'op', 'input', 'parameter', 'buffer' or 'constant'."""

    index: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    origin: str
    name: str = ""
    producer: int = -1


@dataclass
class OpRecord:
    """One torch function that made or changed a tensor; `call` is the innermost module call it ran in (-1: none).

    `result` is the template of what it returned, `changed` the values it overwrote in place, their views included, and
    `places` where each of these lies in memory.
    """

    index: int
    func: Any
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[int]
    call: int
    result: Any = None
    changed: list[int] = field(default_factory=list)
    places: list[str] = field(default_factory=list)

    @cached_property
    def inputs(self) -> list[int]:
        """The values it read."""
        return tensor_refs((self.args, self.kwargs))

    @cached_property
    def signature(self) -> OpSignature | None:
        """What it computes, however it was spelled; None where that is unknown and nothing may be claimed."""
        return bind(self.func, self.args, self.kwargs)

    @property
    def value(self) -> int | None:
        """The one tensor it returned and made or changed, if it was one."""
        single = isinstance(self.result, TensorRef) and self.result.value in self.outputs
        return self.result.value if single else None


@dataclass
class ModuleCall:
    """One call of a module: what went in and out, and the range of operations `[start, stop)` that ran in it."""

    index: int
    path: str
    module: nn.Module
    parent: int
    start: int
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    output: Any = None
    stop: int = -1

    @property
    def inputs(self) -> list[int]:
        """The values passed in."""
        return tensor_refs((self.args, self.kwargs))

    @property
    def outputs(self) -> list[int]:
        """The values returned."""
        return tensor_refs(self.output)

    def holds(self, op: int) -> bool:
        """Whether operation `op` ran in it."""
        return self.start <= op < self.stop


@dataclass
class Trace:
    """What happened in one forward.

    Args:
        ops: the torch functions that made or changed tensors.
        calls: the module calls.
        values: every state of every tensor.
        inputs: the values that were passed in.
        output: the template of what the network returned.
        data_escapes: where a number left the graph, so that Python may decide by it.
        constants: tensors that are no parameter, buffer or result.
        untracked: those constants that no attribute of a module holds either.
        written: parameters, buffers, constants and what modules hold in Python that the forward itself changed.
        drew_random: whether random numbers were drawn.
    """

    ops: list[OpRecord] = field(default_factory=list)
    calls: list[ModuleCall] = field(default_factory=list)
    values: list[TensorRecord] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    output: Any = None
    data_escapes: list[str] = field(default_factory=list)
    constants: dict[int, Tensor] = field(default_factory=dict)
    untracked: list[int] = field(default_factory=list)
    written: set[str] = field(default_factory=set)
    drew_random: bool = False

    @cached_property
    def _by_module(self) -> dict[int, list[ModuleCall]]:
        calls: dict[int, list[ModuleCall]] = {}
        for module_call in self.calls:
            calls.setdefault(id(module_call.module), []).append(module_call)
        return calls

    def __getstate__(self) -> dict[str, Any]:
        """For another process, in which objects have other numbers."""
        return {name: value for name, value in vars(self).items() if name != "_by_module"}

    def calls_of(self, module: nn.Module) -> list[ModuleCall]:
        """All calls of this module object."""
        return self._by_module.get(id(module), [])

    def made_in(self, call: ModuleCall) -> list[int]:
        """The values that the operations of a call made, in order."""
        return [value for op in self.ops[call.start : call.stop] for value in op.outputs]

    def calls_in(self, call: ModuleCall) -> list[ModuleCall]:
        """The module calls inside a call: calls are numbered as they begin, so these follow it without a gap."""
        stop = call.index + 1
        while stop < len(self.calls) and self.calls[stop].parent >= call.index:
            stop += 1
        return self.calls[call.index + 1 : stop]

    @cached_property
    def parents(self) -> frozenset[int]:
        """The calls in which other modules were called, by index."""
        return frozenset(module_call.parent for module_call in self.calls)

    @cached_property
    def last_change(self) -> dict[int, int]:
        """For each value that is changed in place, the last operation that does so."""
        return {value: op.index for op in self.ops for value in op.changed}

    @cached_property
    def readers(self) -> dict[int, list[int]]:
        """For each value, the operations that read it."""
        readers: dict[int, list[int]] = {}
        for op in self.ops:
            for value in set(op.inputs):
                readers.setdefault(value, []).append(op.index)
        return readers

    @cached_property
    def ancestors(self) -> list[int]:
        """For each value, a bit set of the values it depends on, itself included."""
        masks = [1 << value.index for value in self.values]
        for op in self.ops:
            mask = 0
            for value in op.inputs:
                mask |= masks[value]
            for value in op.outputs:
                masks[value] |= mask
        return masks

    def depends(self, value: int, on: int) -> bool:
        """Whether `value` is `on` or was computed from it."""
        return bool(self.ancestors[value] >> on & 1)

    def enclosing(self, index: int) -> Iterator[ModuleCall]:
        """Call number `index` and the calls around it, innermost first."""
        while index >= 0:
            yield self.calls[index]
            index = self.calls[index].parent


def trace_run(model: nn.Module, example: Batch) -> Trace:
    """Run `model` once on `example` in eval mode and record the run.

    Raises:
        ModelRaisedError: the model raised; it is left as it was.
        TraceError: the model returned no tensor that depends on its input.
    """
    recorder = TraceRecorder(model)
    example = example.cloned()
    with evaluating(model), recorder.hooked(), loading_unwatched(model):
        for tensor in example.tensors:
            recorder.trace.inputs.append(recorder.new_value(tensor, "input").value)
        before, kept = _random_states(model), HostState(model)
        with recorder:
            output = call(model, example, clone=False)  # the recorder knows tensors by identity
        recorder.trace.drew_random = before != _random_states(model)
        recorder.trace.written.update(f"'{name}'" for name in kept.changed(HostState(model)))
        recorder.trace.output = recorder.template(output)
    outputs = tensor_refs(recorder.trace.output)
    if not any(recorder.trace.depends(value, source) for value in outputs for source in recorder.trace.inputs):
        raise TraceError(
            f"the model returned no tensor that depends on its input (it returned {type(output).__name__})",
            "Shoal follows tensors through torch functions; a model that leaves torch half-way cannot be traced.",
        )
    return recorder.trace


class TraceRecorder(TorchFunctionMode):
    """Numbers every tensor it sees by identity, and every new state of a tensor that is changed in place."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.trace = Trace()
        self.numbers = WeakTensorKeyDictionary()
        self.versions = WeakTensorKeyDictionary()
        self.sharing: dict[int, list[TensorWeakRef]] = {}  # the numbered tensors by the storage they had when numbered
        self.stack: list[int] = []
        self.model = model
        self.paths: dict[int, str] = {}
        for path, module in model.named_modules():
            self.paths.setdefault(id(module), path)
        # Held as long as the names: an offloaded module drops its parameters, and a number may come up again.
        self.held = [*model.parameters(), *model.buffers()]
        self.names = {id(tensor): ("parameter", name) for name, tensor in model.named_parameters()}
        self.attributes = {id(tensor) for module in model.modules() for tensor in _tensors(vars(module))}
        self.names |= {id(tensor): ("buffer", name) for name, tensor in model.named_buffers()}

    def new_value(self, tensor: Tensor, origin: str, name: str = "", producer: int = -1) -> TensorRef:
        """Register the current state of a tensor as a new value."""
        index = len(self.trace.values)
        value = TensorRecord(index, tuple(tensor.shape), tensor.dtype, origin, name, producer)
        self.trace.values.append(value)
        self.sharing.setdefault(_storage(tensor), []).append(TensorWeakRef(tensor))
        self.numbers[tensor] = index
        self.versions[tensor] = _version(tensor)
        return TensorRef(index)

    def value_of(self, tensor: Tensor) -> TensorRef:
        """The value of this tensor; a tensor that no operation made is a parameter, a buffer or a constant."""
        index = self.numbers.get(tensor)
        if index is not None and self.versions[tensor] == _version(tensor):
            return TensorRef(index)
        if index is not None:  # changed by something that torch does not announce
            return self._constant(tensor, hidden=True)
        origin, name = self.names.get(id(tensor)) or self._read_just_now(tensor) or ("constant", "")
        if origin == "constant":
            return self._constant(tensor, hidden=id(tensor) not in self.attributes)
        return self.new_value(tensor, origin, name)

    def _constant(self, tensor: Tensor, *, hidden: bool) -> TensorRef:
        ref = self.new_value(tensor, "constant")
        # Inside torch.vmap and its like a tensor must not outlive the call: of its numbers nothing is claimed.
        wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        self.trace.constants[ref.value] = torch.empty(0) if wrapped else tensor.detach().clone()
        if hidden:
            self.trace.untracked.append(ref.value)
        return ref

    def _read_just_now(self, tensor: Tensor) -> tuple[str, str] | None:
        """Origin and name of a tensor that an offloaded module on the stack holds while it runs."""
        for index in reversed(self.stack):
            module, path = self.trace.calls[index].module, self.trace.calls[index].path
            for origin, held in (("parameter", module._parameters), ("buffer", module._buffers)):
                for name, candidate in held.items():
                    if candidate is tensor:
                        return origin, f"{path}.{name}" if path else name
        return None

    def template(self, item: Any) -> Any:
        """The template of arguments or results."""
        with torch._C.DisableTorchFunction():
            return template(item, self.value_of)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = attribute_name(func)
        replaced = name in _REPLACES or (name == "__set__" and getattr(func.__self__, "__name__", "") == "data")
        before = self.template((args, kwargs))
        read = list(_tensors((args, kwargs)))
        versions = [_version(tensor) for tensor in read]
        result = func(*args, **kwargs)
        changed = [tensor for tensor, version in zip(read, versions, strict=True) if _version(tensor) != version]
        if replaced or None in versions:  # tensors made in inference mode keep no version: judge by the name
            changed = read[:1] if replaced else [*changed, *_written_by_name(name, args, kwargs)]
        if changed or _has_tensor(result):
            self.record(func, name, before, changed, result)
        elif name in _ESCAPES and tensor_refs(before):
            where = self.trace.calls[self.stack[-1]].path if self.stack else ""
            self.trace.data_escapes.append(f"{name} in '{where}'")
        return result

    def record(self, func: Any, name: str, before: Any, changed: list[Tensor], result: Any) -> None:
        """Record an operation, with the values it made or changed in place."""
        args, kwargs = before
        op = OpRecord(len(self.trace.ops), func, name, args, kwargs, [], self.stack[-1] if self.stack else -1)
        with torch._C.DisableTorchFunction():
            for tensor in changed:
                self._renumber(tensor, op)
                self._renumber_aliases(tensor, op)
            for tensor in _tensors(result):
                if self.numbers.get(tensor) is None:
                    op.outputs.append(self.new_value(tensor, "op", producer=op.index).value)
        op.result = self.template(result)
        if op.outputs:  # else the very tensor was handed through: contiguous(), to(), dropout in eval mode
            self.trace.ops.append(op)

    def _renumber_aliases(self, changed: Tensor, op: OpRecord) -> None:
        # Views of the same memory changed with it: whoever reads them later depends on this operation too. Weights
        # may lie side by side in one storage: they changed only where they overlap.
        storage = _storage(changed)
        numbered = {id(alias): alias for ref in self.sharing.get(storage, []) if (alias := ref()) is not None}
        self.sharing[storage] = [
            TensorWeakRef(alias) for alias in numbered.values()
        ]  # a storage's number is used again
        for alias in numbered.values():
            if _storage(alias) == storage and (id(alias) not in self.names or _overlap(alias, changed)):
                self._renumber(alias, op)

    def _renumber(self, tensor: Tensor, op: OpRecord) -> None:
        before = self.trace.values[self.numbers[tensor]]
        if before.producer == op.index:
            return
        if before.origin not in ("op", "input"):
            self.trace.written.add(before.name or f"a constant of shape {list(before.shape)}")
        op.changed.append(before.index)
        op.places.append(_place(tensor))
        op.outputs.append(self.new_value(tensor, "op", producer=op.index).value)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Hooks on every module inside this context; removed afterwards, whatever happens."""
        handles: list[RemovableHandle] = []
        try:
            for module in self.model.modules():
                handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
                # A call is what `forward` does: hooks of the user act before it begins and after it ends.
                first = has_forward_hooks(module)
                handles.append(module.register_forward_hook(self._leave, with_kwargs=True, prepend=first))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        parent = self.stack[-1] if self.stack else -1
        call = ModuleCall(len(self.trace.calls), self.paths.get(id(module), ""), module, parent, len(self.trace.ops))
        call.args, call.kwargs = self.template((args, kwargs))
        self.trace.calls.append(call)
        self.stack.append(call.index)

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call = self.trace.calls[self.stack.pop()]
        call.output = self.template(output)
        call.stop = len(self.trace.ops)


def attribute_name(func: Any) -> str:
    """The name of a torch function; of an attribute of a tensor (shape, dtype, T, data) that of the attribute."""
    name = getattr(func, "__name__", type(func).__name__)
    return getattr(getattr(func, "__self__", None), "__name__", name) if name == "__get__" else name


def _version(tensor: Tensor) -> int | None:
    try:
        return tensor._version
    except RuntimeError:  # tensors made in inference mode keep no version
        return None


def _written_by_name(name: str, args: Any, kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that a function changes in place, judging by its name and arguments."""
    written = [tensor for tensor in _tensors(kwargs.get("out")) if tensor.is_inference()]
    in_place = name == "__setitem__" or name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))
    first = args[0] if args else kwargs.get("input", kwargs.get("self"))
    if (in_place or kwargs.get("inplace")) and isinstance(first, Tensor) and first.is_inference():
        written.append(first)
    return written


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse and other storage-less tensors
        return -id(tensor)


def _overlap(first: Tensor, second: Tensor) -> bool:
    """Whether the memory ranges of two tensors of one storage overlap."""
    (start, stop), (begin, end) = _memory_range(first), _memory_range(second)
    return start < end and begin < stop


def _memory_range(tensor: Tensor) -> tuple[int, int]:
    start = int(tensor.storage_offset()) * tensor.element_size()
    last = sum((length - 1) * int(step) for length, step in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size() if tensor.numel() else start


def _place(tensor: Tensor) -> str:
    """Where the numbers of a tensor lie in its storage."""
    try:
        return f"{tensor.storage_offset()}:{tuple(tensor.stride())}:{tensor.element_size()}"
    except (NotImplementedError, RuntimeError):
        return ""


def _random_states(model: nn.Module) -> tuple[Any, ...]:
    """The random states of torch, Python and numpy."""
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    states = [torch.random.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in sorted(devices, key=str))]
    drawn: Any = np.random.get_state(legacy=False)
    numpy_ = drawn["state"]["key"].tobytes(), drawn["state"]["pos"], drawn.get("has_gauss")
    return random.getstate(), numpy_, *(state.numpy().tobytes() for state in states)


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, (tuple, list)):
        for part in result:
            yield from _tensors(part)
    elif type(result) is dict or isinstance(result, Mapping):
        for part in result.values():
            yield from _tensors(part)


def _has_tensor(result: Any) -> bool:
    return next(_tensors(result), None) is not None
