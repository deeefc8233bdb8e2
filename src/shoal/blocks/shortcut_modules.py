"""Shortcut modules: what remains of a block without its branches, including what follows the last addition.

The shortcut is sliced out of the trace: from the block's result backwards, every residual addition replaced by its
stream operand, until the block's inputs are reached. So no class needs to be known, functional code included.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from shoal.blocks.additions import Addition
from shoal.blocks.hooks import with_forward_hooks_of
from shoal.blocks.operations import parts_of, without_in_place
from shoal.blocks.sign_analysis import non_negative_results
from shoal.blocks.template import Opaque, TensorRef, leaves, substitute, tensor_refs
from shoal.blocks.trace import ModuleCall, OpRecord, Trace
from shoal.errors import SurgeryError

_RESHAPES = ("view", "reshape")
# Functions that fill a tensor of sizes in numbers, and with what.
_FILLED: dict[str, float | None] = {
    "zeros": 0,
    "new_zeros": 0,
    "ones": 1,
    "new_ones": 1,
    "full": None,
    "new_full": None,
}


@dataclass(frozen=True)
class ReplayStep:
    """One step of a shortcut: call a module (`target` is its name) or a torch function."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


@dataclass
class ShortcutSlice:
    """The steps from a block's inputs to its output, with the modules and parameters they need."""

    steps: list[ReplayStep] = field(default_factory=list)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    parameters: dict[int, tuple[str, Tensor]] = field(default_factory=dict)
    result: int = -1
    assumption: str | None = None


class ShortcutModule(nn.Module):
    """The shortcut of a block that is more than an identity, or that is called with more than one tensor.

    Takes the arguments of the block it stands for, runs the shortcut and the activation after the addition, and
    returns what the block returned, with None for what nobody reads.
    """

    def __init__(self, sliced: ShortcutSlice, call: ModuleCall, output: Any) -> None:
        super().__init__()
        for name, module in sliced.modules.items():
            self.add_module(name, module)
        self._held: dict[int, str] = {}
        for value, (name, tensor) in sliced.parameters.items():
            key = name.replace(".", "_")
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(key, tensor)
            else:
                self.register_buffer(key, tensor)
            self._held[value] = key
        # Plain tuples, with whether a step is one of the modules: what torch.compile sees through in every version.
        self._steps = tuple(
            (isinstance(step.target, str), step.target, step.args, step.kwargs, step.output) for step in sliced.steps
        )
        self._result = sliced.result
        self._output = output
        self._arguments = (call.args, call.kwargs)
        for name, value in vars(call.module).items():  # plain attributes that the network's code may ask a block for
            if not name.startswith("_") and name not in self.__dict__ and isinstance(value, (int, float, str)):
                self.__dict__[name] = value

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Where a network is tried without the block this is the reason that its user reads.
            reason = (
                f"its shortcut has no attribute '{name}', which the code that calls the blocks reads; remove another "
                "block instead, or call the blocks in a loop that reads nothing of them"
            )
            raise AttributeError(reason) from None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Take the arguments of the block, return what the block returns."""
        values: dict[int, Any] = {value: getattr(self, key) for value, key in self._held.items()}
        _bind(self._arguments[0], args, values)
        _bind(self._arguments[1], kwargs, values)
        for is_module, target, step_args, step_kwargs, output in self._steps:
            function = getattr(self, target) if is_module else target
            _bind(output, function(*substitute(step_args, values), **substitute(step_kwargs, values)), values)
        return substitute(self._output, values)

    def extra_repr(self) -> str:
        """The steps as a short formula."""
        names = [target if is_module else target.__name__ for is_module, target, *_ in self._steps]
        return " -> ".join(["x", *names])


def extract_shortcut(
    trace: Trace,
    call: ModuleCall,
    additions: list[Addition],
    *,
    non_negative: frozenset[int],
    norms: Mapping[int, int] | None = None,
) -> tuple[nn.Module, str | None]:
    """The shortcut of a block, and the assumption under which its last activation was dropped.

    Args:
        trace: the run.
        call: of the block.
        additions: of the block.
        non_negative: the values of the run that are never negative.
        norms: the result of `post_addition_norms`, where these are to be removed too.

    Raises:
        SurgeryError: the shortcut cannot be cut out of the block's code; says what stands in the way.
    """
    main = main_output(trace, call, additions)
    slicer = ShortcutSlicer(trace, call, additions, non_negative, norms or {})
    sliced = slicer.run(main)
    streams = {main: sliced.result, **_other_streams(call, additions, main, slicer)}
    output = _output_without(trace, call, streams)
    shortcut = _plain_module(sliced, call, output) or ShortcutModule(sliced, call, output)
    _mimic_first_encoder_layer_(shortcut, trace, call)
    return with_forward_hooks_of(call.module, shortcut), sliced.assumption


def match_mode_(shortcut: nn.Module, block: nn.Module) -> None:
    """Set the training mode of a shortcut to that of its block; parts of the block keep their own."""
    parts = {id(part._parameters) for part in block.modules()}  # of a part with hooks a shallow copy stands here
    if id(shortcut._parameters) not in parts:
        shortcut.training = block.training


def _mimic_first_encoder_layer_(shortcut: nn.Module, trace: Trace, call: ModuleCall) -> None:
    """Give the shortcut of an encoder's first layer the attributes that torch's TransformerEncoder reads from it.

    The container reads the layout and the kinds of its first layer's weights, never their values, to choose its fast
    path: parts without values say the same.
    """
    parent, layer = trace.calls[call.parent].module if call.parent >= 0 else None, call.module
    is_encoder = isinstance(parent, nn.TransformerEncoder) and type(parent).forward is nn.TransformerEncoder.forward
    # A norm behind the addition would be left, and work on nested tensors that the fast path makes.
    is_new = isinstance(shortcut, (ShortcutModule, nn.Identity))  # else it is a module of the network itself
    if not (is_encoder and is_new and isinstance(layer, nn.TransformerEncoderLayer) and layer.norm_first):
        return
    for name in ("self_attn", "norm1", "norm2", "linear1", "linear2"):
        part = getattr(layer, name)
        empty = {
            id(parameter): nn.Parameter(torch.empty(0, dtype=parameter.dtype), requires_grad=False)
            for parameter in part.parameters()
        }
        shortcut.__dict__[name] = copy.deepcopy(part, empty)  # no submodule: nothing of it is saved or trained


def main_output(trace: Trace, call: ModuleCall, additions: list[Addition]) -> int:
    """The output value of a block that carries the stream.

    Raises:
        SurgeryError: no output depends on the last addition.
    """
    for value in call.outputs:
        if trace.depends(value, additions[-1].result):
            return value
    raise SurgeryError(f"the result of the addition in '{call.path}' does not leave the block as an output")


def _other_streams(call: ModuleCall, additions: list[Addition], main: int, slicer: "ShortcutSlicer") -> dict[int, int]:
    """Further outputs that are streams of their own, as of a block of two: additions to one of the block's inputs."""
    results = {addition.result for addition in additions}
    entries = {value: slicer.resolve(value) for value in call.outputs if value in results - {main}}
    return {value: entry for value, entry in entries.items() if entry in call.inputs}


def _output_without(trace: Trace, call: ModuleCall, streams: Mapping[int, int]) -> Any:
    """The block's output template with the streams replaced and all else None; refused where somebody reads it."""
    network_output = set(tensor_refs(trace.output))
    outputs = set(call.outputs)
    inside = set(trace.made_in(call))
    for value in (inside | outputs) - streams.keys():
        outside = [op for op in trace.readers.get(value, []) if op >= call.stop]
        if value in outputs - set(call.inputs) and (outside or value in network_output):
            raise SurgeryError("it has a second output that is read elsewhere")
        if value in inside - outputs and outside:
            raise SurgeryError("what is computed inside it is read elsewhere")

    def swap(item: Any) -> Any:
        if isinstance(item, TensorRef):
            kept = item if item.value in call.inputs else None
            return TensorRef(streams[item.value]) if item.value in streams else kept
        if isinstance(item, Opaque):
            raise SurgeryError(f"it returns a {item.kind}")
        if isinstance(item, Mapping):
            return {key: swap(value) for key, value in item.items()}
        if isinstance(item, (tuple, list)):
            return type(item)(swap(value) for value in item)
        return item

    return swap(call.output)


def _plain_module(sliced: ShortcutSlice, call: ModuleCall, output: Any) -> nn.Module | None:
    """An ordinary module where the shortcut is one: Identity, or the single module that remains."""
    if not (
        isinstance(output, TensorRef)
        and len(call.args) == 1
        and isinstance(call.args[0], TensorRef)
        and not call.kwargs
    ):
        return None
    entry = call.args[0].value
    if not sliced.steps and output.value == entry:
        return nn.Identity()
    if len(sliced.steps) == 1:
        step = sliced.steps[0]
        alone = isinstance(step.target, str) and step.args == (TensorRef(entry),) and not step.kwargs
        if alone and step.output == output:
            return sliced.modules[step.target]
    return None


class ShortcutSlicer:
    """Walks back from a value to the inputs of the block and records the steps forward."""

    def __init__(
        self,
        trace: Trace,
        call: ModuleCall,
        additions: list[Addition],
        non_negative: frozenset[int],
        norms: Mapping[int, int],
    ) -> None:
        self.trace, self.call = trace, call
        self.instead = {**norms, **{addition.result: addition.stream for addition in additions}}
        self.add_ops = {addition.op for addition in additions}
        self.sliced = ShortcutSlice()
        self.known: dict[int, int] = {}
        self.non_negative = {value for value in call.inputs if value in non_negative}

    def run(self, value: int) -> ShortcutSlice:
        """The steps that compute `value` without the branches."""
        self.sliced.result = self.resolve(value)
        return self.sliced

    def resolve(self, value: int) -> int:
        """The value that stands for `value` in the slice."""
        kept = self.instead.get(value, value)
        if value not in self.known:
            self.known[value] = self.resolve(kept) if kept != value else self._make(value)
        return self.known[value]

    def _make(self, value: int) -> int:
        if value in self.call.inputs:
            return value
        info = self.trace.values[value]
        if info.origin == "constant":
            self.sliced.parameters[value] = (f"constant_{value}", self.trace.constants[value])
            return value
        if info.origin in ("parameter", "buffer"):
            self.sliced.parameters[value] = (
                info.name.removeprefix(self.call.path + "."),
                self._tensor(info.name),
            )
            return value
        if info.producer < 0 or not self.call.holds(info.producer):
            raise SurgeryError("it reads a tensor that is not among its arguments")
        whole = self._module_call(info.producer, value)
        return self._module_step(whole, value) if whole is not None else self._function_step(value)

    def _tensor(self, name: str) -> Tensor:
        path = self.call.path
        local = name[len(path) + 1 :] if path and name.startswith(path + ".") else None
        if local is None:
            raise SurgeryError(f"its shortcut reads '{name}', which belongs to another module")
        owner, _, leaf = local.rpartition(".")
        return getattr(self.call.module.get_submodule(owner), leaf)

    def _module_call(self, producer: int, value: int) -> ModuleCall | None:
        """The outermost module call inside the block that made `value` and holds none of the additions."""
        best = None
        for call in self.trace.enclosing(self.trace.ops[producer].call):
            if call.index == self.call.index:
                break
            if value in call.outputs and not any(call.holds(op) for op in self.add_ops):
                best = call
        return best

    def _module_step(self, call: ModuleCall, value: int) -> int:
        args, kwargs = self._arguments(call.args, call.kwargs)
        name = call.path.removeprefix(self.call.path + ".").replace(".", "_") or "module"
        module = call.module
        if type(module) is nn.ReLU and self._idle_relu(tensor_refs(args)[0]):
            return tensor_refs(args)[0]
        if getattr(module, "inplace", False):
            module = copy.copy(module)
            module.inplace = False  # type: ignore[assignment]
        self.sliced.modules[name] = module
        self.sliced.steps.append(ReplayStep(name, args, kwargs, call.output))
        self._note_signs(call.start, call.stop)
        return value

    def _note_signs(self, start: int, stop: int) -> None:
        """Note which values stay non-negative where these operations run in the shortcut."""
        self.non_negative |= {value for value, now in self.known.items() if now in self.non_negative}
        for op in self.trace.ops[start:stop]:
            self.non_negative.update(non_negative_results(self.trace, op, self.non_negative))

    def _idle_relu(self, entry: int) -> bool:
        if entry not in self.non_negative:
            return False
        self.sliced.assumption = (
            f"the input of '{self.call.path}' is never negative, so the ReLU after its addition does nothing"
        )
        return True

    def _before_reshaping(self, value: int) -> int | None:
        """The value that a series of reshapes began with, where they only restored its shape.

        Code that flattens its input and restores it writes the batch size of the trace into the second reshape.
        """
        shape, current = self.trace.values[value].shape, value
        while current not in self.call.inputs:
            info = self.trace.values[current]
            op = self.trace.ops[info.producer] if info.producer >= 0 else None
            if op is None or op.name not in _RESHAPES or not op.args or not isinstance(op.args[0], TensorRef):
                return None
            current = self.instead.get(op.args[0].value, op.args[0].value)
            if self.trace.values[current].shape == shape:
                return current
        return None

    def _sizes_of_each(self, op: OpRecord, value: int) -> tuple[int, ...] | None:
        """The sizes per sample of a reshape that keeps the first axis; the number of samples is that of the trace."""
        if op.name not in _RESHAPES or op.kwargs or not op.args or not isinstance(op.args[0], TensorRef):
            return None
        sizes = op.args[1] if len(op.args) == 2 and isinstance(op.args[1], (tuple, list)) else op.args[1:]
        before, after = self.trace.values[op.args[0].value].shape, self.trace.values[value].shape
        whole = bool(sizes) and all(type(size) is int for size in sizes)
        return tuple(sizes[1:]) if whole and before[:1] == after[:1] == (sizes[0],) else None

    def _function_step(self, value: int) -> int:
        op = self.trace.ops[self.trace.values[value].producer]
        restored = self._before_reshaping(value)
        if restored is not None:
            return self.resolve(restored)
        self._fill_next_to_stream(op)
        args, kwargs = self._arguments(op.args, op.kwargs)
        entries = tensor_refs((args, kwargs))
        relu = op.signature is not None and op.signature.name == "relu"
        if relu and len(entries) == 1 and self._idle_relu(entries[0]):
            return entries[0]
        function, kwargs = without_in_place(op.func, kwargs)
        if value not in tensor_refs(op.result):
            raise SurgeryError(f"its shortcut is changed in place by {op.name}")
        sizes = self._sizes_of_each(op, value)
        if sizes is not None:
            function, args = _reshape_each, (args[0], sizes)
        self.sliced.steps.append(ReplayStep(function, args, kwargs, op.result))
        self._note_signs(op.index, op.index + 1)
        return value

    def _fill_next_to_stream(self, op: OpRecord) -> None:
        """Constants that are concatenated to the stream and share its sizes: `cat([x, zeros(...)])`.

        Their sizes were written down in the run; but for the axis that is joined they follow those of their neighbour.
        """
        if op.signature is None or op.signature.name != "cat":
            return
        axis = op.signature.get("dim")
        parts = [part.value for part in parts_of(op.signature.get("tensors")) if isinstance(part, TensorRef)]
        fills = {value: fill for value in parts if (fill := self._fill(value)) is not None}
        streams = [value for value in parts if value not in fills]
        if not fills or not streams or not isinstance(axis, int):
            return
        neighbour = TensorRef(self.resolve(streams[0]))
        for value, fill in fills.items():
            if value not in self.known:
                length, dtype = self.trace.values[value].shape[axis], self.trace.values[value].dtype
                self.sliced.steps.append(
                    ReplayStep(_filled_like, (neighbour, axis, length, fill, dtype), {}, TensorRef(value))
                )
                self.known[value] = value

    def _fill(self, value: int) -> float | None:
        """The number that a tensor made in this block is filled with; None for any other tensor."""
        info = self.trace.values[value]
        made = info.producer >= 0 and self.call.holds(info.producer)
        signature = self.trace.ops[info.producer].signature if made else None
        if signature is None or signature.name not in _FILLED:
            return None
        fill = signature.get("fill_value", _FILLED[signature.name])
        return fill if isinstance(fill, (int, float)) else None

    def _arguments(self, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        for leaf in leaves((args, kwargs)):
            if isinstance(leaf, Opaque):
                raise SurgeryError(f"its shortcut is computed with a {leaf.kind}, which cannot be written down")
        numbers: Mapping[int, TensorRef] = {
            value: TensorRef(self.resolve(value)) for value in tensor_refs((args, kwargs))
        }
        return substitute(args, numbers), substitute(kwargs, numbers)


def _filled_like(x: Tensor, axis: int, length: int, fill: float, dtype: torch.dtype) -> Tensor:
    """A constant of the shape of `x`, except for one axis."""
    shape = list(x.shape)
    shape[axis] = length
    return x.new_full(shape, fill, dtype=dtype)


def _reshape_each(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Reshape each sample, however many there are."""
    return x.reshape(x.shape[0], *sizes)


def _bind(pattern: Any, item: Any, values: dict[int, Any]) -> None:
    """Store the tensors of `item` under the numbers that `pattern` has in their places."""
    if isinstance(pattern, TensorRef):
        values[pattern.value] = item
    elif isinstance(pattern, Mapping) and isinstance(item, Mapping):
        for key, part in pattern.items():
            if key in item:
                _bind(part, item[key], values)
    elif isinstance(pattern, (tuple, list)) and isinstance(item, (tuple, list)):
        for part, value in zip(pattern, item, strict=False):
            _bind(part, value, values)
