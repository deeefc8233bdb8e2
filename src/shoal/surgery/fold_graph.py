"""The layers of a traced network that exact algebra can work on, and who reads whose output while folds go on.

A convolution, linear layer or batch norm is *plain* if the trace shows that its call ran just its own operation on its
own parameters, once, with nobody else reading them. The modules around it do not matter.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from shoal.batches import Batch
from shoal.blocks import BlockGraph
from shoal.blocks.input_variants import more_samples, other_values, resized
from shoal.blocks.operations import plain_name
from shoal.blocks.template import TensorRef, tensor_refs
from shoal.blocks.trace import ModuleCall, OpRecord, Trace, trace_run
from shoal.errors import ModelRaisedError, TraceError

# The dimensions of the window; 0 for a linear layer, which works on the last axis.
LINEAR_MAPS = {
    "linear": 0,
    "conv1d": 1,
    "conv2d": 2,
    "conv3d": 3,
    "conv_transpose1d": 1,
    "conv_transpose2d": 2,
    "conv_transpose3d": 3,
}
_KINDS = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)


@dataclass(eq=False)
class FoldLayer:
    """One plain layer: its module and the operation that it ran.

    Args:
        path: where it was when the network was traced.
        module: holds the parameters.
        op: the convolution, linear map or batch norm itself.
        alone: whether nothing else ran in its call (no padding of another kind before).
    """

    path: str
    module: Any
    op: OpRecord
    alone: bool

    @property
    def name(self) -> str:
        """What it computes: 'conv2d', 'linear', 'batch_norm'."""
        return plain_name(self.op.name)

    @property
    def source(self) -> int:
        """The value its operation reads."""
        read = self.op.signature.tensor("input") if self.op.signature is not None else None
        return read if read is not None else self.op.inputs[0]

    @property
    def result(self) -> int:
        """The value it makes."""
        return self.op.value if self.op.value is not None else self.op.outputs[0]

    @property
    def transposed(self) -> bool:
        """Whether its weight is laid out (in, out / groups, ...)."""
        return self.name.startswith("conv_transpose")

    @property
    def groups(self) -> int:
        """The number of channel groups."""
        return int(getattr(self.module, "groups", 1))

    @property
    def pads(self) -> bool:
        """Whether zeros, or anything else, stand around its input; a transposed one always has borders."""
        padding = self.setting("padding", 0)
        if isinstance(padding, str):
            padding = 0 if padding == "valid" or prod(self.module.weight.shape[2:]) == 1 else 1
        size = padding if isinstance(padding, (tuple, list)) else (padding,)
        return self.transposed or not self.alone or (self.name != "linear" and any(size))

    def setting(self, name: str, default: Any = None) -> Any:
        """An argument of the operation, however it was passed."""
        return self.op.signature.get(name, default) if self.op.signature is not None else default


class FoldGraph:
    """Plain layers and data flow of a traced network; folding keeps it up to date without another trace."""

    def __init__(self, block_graph: BlockGraph, others: Sequence[Trace] = ()) -> None:
        self.model, self.trace, self.other_runs = block_graph.model, block_graph.trace, others
        self.refused: dict[str, str] = {}
        self.norms: list[FoldLayer] = []
        self.maps: list[FoldLayer] = []
        self.dropped: set[int] = set()
        self._same: dict[int, int] = {}
        self._shapes: dict[int, tuple[int, ...]] = {}
        self._readers = {value: set(ops) for value, ops in self.trace.readers.items()}
        self._returned = set(tensor_refs(self.trace.output))
        self._registered = _counts(id(module) for _, module in self.model.named_modules(remove_duplicate=False))
        self._tied = _counts(id(parameter) for _, parameter in self.model.named_parameters(remove_duplicate=False))
        self._called = _counts(id(call.module) for call in self.trace.calls)
        for call in self.trace.calls:
            if isinstance(call.module, _KINDS):
                self._add(call)
        self.layers = {layer.op.index: layer for layer in (*self.norms, *self.maps)}
        self._paths = {id(module): path for path, module in self.model.named_modules()}

    def _add(self, call: ModuleCall) -> None:
        ops = self.trace.ops[call.start : call.stop]
        reason = self._not_plain_reason(call, ops)
        if reason is not None:
            self.refused[call.path] = reason
            return
        layer = FoldLayer(call.path, call.module, ops[-1], alone=len(ops) == 1)
        (self.norms if layer.name == "batch_norm" else self.maps).append(layer)

    def _not_plain_reason(self, call: ModuleCall, ops: list[OpRecord]) -> str | None:
        module = call.module
        if any(_reader_names(trace, module) != _reader_names(self.trace, module) for trace in self.other_runs):
            return "the network uses it in another way for other inputs (sizes, numbers of samples, values)"
        if any(tensor.is_complex() for tensor in (*module.parameters(), *module.buffers())):
            return "its weights are complex numbers"
        if self.trace.written:
            return f"the network changes {sorted(self.trace.written)[0]} as it runs"
        if self.trace.untracked:
            return "a tensor appears in the run that no torch function made: who reads what is not known"
        if self._called[id(module)] > 1:
            return f"it is called {self._called[id(module)]} times"
        if self._registered[id(module)] > 1:
            return "it is registered under more than one name"
        if module._forward_hooks or module._forward_pre_hooks:
            return "it carries hooks, which would see other numbers"
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return self._why_no_norm(call, ops)
        if not ops or plain_name(ops[-1].name) not in LINEAR_MAPS or call.output != TensorRef(ops[-1].outputs[0]):
            return "its call does not end in a convolution or linear map of its own"
        dimensions = LINEAR_MAPS[plain_name(ops[-1].name)]
        if dimensions and len(self.trace.values[ops[-1].outputs[0]].shape) != dimensions + 2:
            return "it ran on a sample without a batch axis"
        return self._not_own_reason(call, ops[-1], ("weight", "bias"))

    def _why_no_norm(self, call: ModuleCall, ops: list[OpRecord]) -> str | None:
        if len(ops) != 1 or plain_name(ops[0].name) != "batch_norm" or call.output != TensorRef(ops[0].outputs[0]):
            return "its call does more than a batch norm"
        if call.module.running_mean is None or call.module.running_var is None:
            return "it has no running statistics: it normalises by the mini-batch also in eval mode"
        return self._not_own_reason(call, ops[0], ("running_mean", "running_var", "weight", "bias"))

    def _not_own_reason(self, call: ModuleCall, op: OpRecord, names: tuple[str, ...]) -> str | None:
        """Whether the operation reads the parameters of its module, and it alone does."""
        for name in names:
            tensor = getattr(call.module, name)
            argument = op.signature.get(name) if op.signature is not None else "unknown"
            if tensor is None and argument is None:
                continue
            value = self.trace.values[argument.value] if isinstance(argument, TensorRef) else None
            if value is None or value.name != f"{call.path}.{name}".lstrip("."):
                return f"its {name} is made from something else as it runs"
            if self._tied.get(id(tensor), 1) > 1 or len(self.trace.readers[value.index]) > 1:
                return f"its {name} is shared"
        return None

    def path(self, layer: FoldLayer) -> str | None:
        """Where the layer's module is now; None if it went with a block."""
        return self._paths.get(id(layer.module))

    def resolve(self, value: int) -> int:
        """The value that replaces `value` after the folds so far."""
        while value in self._same:
            value = self._same[value]
        return value

    def readers(self, value: int) -> set[int]:
        """The operations that read a value, or the value it was replaced by."""
        return self._readers.get(self.resolve(value), set())

    def sole_consumer(self, value: int) -> FoldLayer | None:
        """The plain layer that is the single reader of a value, if there is one."""
        readers = self.readers(value)
        if len(readers) != 1 or self.resolve(value) in self._returned:
            return None
        return self.layers.get(next(iter(readers)))

    def producer(self, value: int) -> FoldLayer | None:
        """The convolution or linear layer that a value comes from."""
        value = self.resolve(value)
        return next((layer for layer in self.maps if layer.result == value and self.path(layer) is not None), None)

    def describe(self, value: int) -> str:
        """Where a value comes from, as text."""
        info = self.trace.values[self.resolve(value)]
        if info.producer < 0:
            return f"the network's {info.origin}"
        op = self.trace.ops[info.producer]
        where = self.trace.calls[op.call].path if op.call >= 0 else ""
        reason = f" ({self.refused[where]})" if where in self.refused else ""
        return f"{plain_name(op.name)} in '{where}'{reason}"

    def shape(self, value: int) -> tuple[int, ...]:
        """The shape of a value after the folds so far."""
        value = self.resolve(value)
        return self._shapes.get(value, self.trace.values[value].shape)

    def overwritten(self, value: int, start: int, stop: int) -> bool:
        """Whether the memory of a value changes between two operations."""
        return any(self.resolve(value) in map(self.resolve, op.changed) for op in self.trace.ops[start:stop])

    def replace_with_identity(self, layer: FoldLayer, path: str) -> None:
        """Replace a layer by `nn.Identity`: another layer does its work from now on."""
        identity = nn.Identity()
        identity.training = layer.module.training
        self.model.set_submodule(path, identity, strict=True)
        self._paths.pop(id(layer.module), None)
        shape = self.shape(layer.result)
        self.drop([layer.op.index])
        self.redirect(layer.result, layer.source)
        self._shapes[self.resolve(layer.source)] = shape

    def drop(self, ops: list[int]) -> None:
        """Mark operations as no longer run."""
        for index in ops:
            self.dropped.add(index)
            for value in self.trace.ops[index].inputs:
                self._readers.get(self.resolve(value), set()).discard(index)

    def redirect(self, value: int, now: int) -> None:
        """Whoever read `value` reads `now` from here on."""
        value, now = self.resolve(value), self.resolve(now)
        if value == now:
            return
        self._same[value] = now
        self._readers.setdefault(now, set()).update(self._readers.pop(value, set()))
        if value in self._returned:
            self._returned.add(now)

    def update_paths(self) -> None:
        """Look up the paths of all modules again, after modules were replaced."""
        self._paths = {id(module): path for path, module in self.model.named_modules()}
        self.norms = [layer for layer in self.norms if id(layer.module) in self._paths]
        self.maps = [layer for layer in self.maps if id(layer.module) in self._paths]


def _reader_names(trace: Trace, module: nn.Module) -> list[Any]:
    """What a layer runs, with which padding, and who reads what it makes, call by call."""

    def reader(index: int) -> tuple[str, str]:
        op = trace.ops[index]
        return (trace.calls[op.call].path if op.call >= 0 else "", op.name)

    def steps(call: ModuleCall) -> list[tuple[str, Any]]:
        ops = trace.ops[call.start : call.stop]
        return [(op.name, op.signature.get("padding", 0) if op.signature is not None else None) for op in ops]

    return [
        (steps(call), sorted(reader(op) for value in call.outputs for op in trace.readers.get(value, [])))
        for call in trace.calls_of(module)
    ]


def runs_of_other_inputs(block_graph: BlockGraph) -> list[Trace]:
    """The network on inputs of other sizes, numbers of samples and values, as far as it takes them.

    Its code may choose a layer, or pad, by any of them.
    """
    if block_graph.example is None:
        return []
    example, values = block_graph.example, other_values(block_graph.example)
    groups = [[more_samples(values), values], *([_resized(example, factor)] for factor in (0.5, 1.5, 2.0))]
    return [run for group in chain(groups, resized(example)) if (run := _first_run(block_graph.model, group))]


def _first_run(model: nn.Module, group: Sequence[Batch]) -> Trace | None:
    """The trace of the first input that the network takes."""
    for batch in group:
        with suppress(ModelRaisedError, TraceError):
            return trace_run(model, batch)
    return None


def _resized(batch: Batch, factor: float) -> Batch:
    """More or fewer positions: of an image, of a sequence of features or of tokens."""

    def change(item: Any) -> Any:
        if not isinstance(item, Tensor) or (item.dim() == 2 and item.is_floating_point()):
            return item
        for axis in {2: (1,), 3: (1,), 4: (2, 3)}.get(item.dim(), ()):
            length = max(1, int(item.shape[axis] * factor))
            item = item.index_select(axis, torch.arange(length, device=item.device) % item.shape[axis])
        return item

    return Batch(tuple(map(change, batch.args)), {key: change(item) for key, item in batch.kwargs.items()})


def as_float64(tensor: Tensor | None, like: int) -> Tensor:
    """A parameter in float64 on the CPU; zeros of length `like` for one that is not there."""
    if tensor is None:
        return torch.zeros(like, dtype=torch.float64)
    return tensor.detach().to("cpu", torch.float64)


def set_parameter(module: Any, name: str, tensor: Tensor) -> None:
    """A new parameter in the dtype, device and gradient setting of the module's weight."""
    weight = module.weight
    value = tensor.to(device=weight.device, dtype=weight.dtype)
    setattr(module, name, nn.Parameter(value, requires_grad=weight.requires_grad))


def fits(module: Any, *tensors: Tensor) -> bool:
    """Whether numbers computed in float64 stay finite in the dtype of the module's weight."""
    return all(bool(torch.isfinite(tensor.to(module.weight.dtype)).all()) for tensor in tensors)


def _counts(items: Any) -> dict[int, int]:
    counts: dict[int, int] = {}
    for item in items:
        counts[item] = counts.get(item, 0) + 1
    return counts
