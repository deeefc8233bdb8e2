"""A branch that adds one constant a channel can go: whoever reads the stream later takes the constant in.

Exact only where the stream reaches its readers through additions, pooling and linear maps: a batch norm shifts its
running mean, a linear layer or a convolution without padding its bias. A zero-padded border or a ReLU stops it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.blocks import Block, BlockGraph
from shoal.blocks.additions import Addition, add_operands
from shoal.blocks.discover import graph_from_trace
from shoal.blocks.hooks import has_forward_hooks
from shoal.blocks.operations import plain_name
from shoal.blocks.template import tensor_refs
from shoal.blocks.trace import OpRecord
from shoal.surgery.fold_graph import FoldGraph, FoldLayer, as_float64, fits, set_parameter
from shoal.surgery.fold_layers import response, scale_and_shift

_ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "hardswish": F.hardswish,
}
_UNCHANGED = frozenset(["clone", "contiguous", "alias", "detach", "to"])
_POOLS = frozenset("avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d".split())
_ADAPTIVE_POOLS = frozenset("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d".split())


@dataclass(frozen=True)
class ChannelConstant:
    """The same number at every position and for every input: one a channel, which lie on axis `axis`."""

    numbers: Tensor
    axis: int


@dataclass(frozen=True)
class ConstantFold:
    """A block whose branches add constants, and by how much the input of each later layer changes without them."""

    path: str
    shifts: tuple[tuple[FoldLayer, Tensor], ...]


class _ConstantStopsError(Exception):
    """Why a constant cannot be taken in."""


def find_constant_folds(block_graph: BlockGraph, graph: FoldGraph) -> tuple[list[ConstantFold], dict[str, str]]:
    """The blocks that add constants and can go, and those that cannot, each with the reason.

    What holds for the traced input must hold for all: in runs on other inputs the same layers have to take in the same
    constants, since code may pad, pool or choose its layers by the size of what it gets.
    """
    folds, refused = _folds_of_run(block_graph, graph)
    for run in graph.other_runs if folds else ():
        variant = graph_from_trace(block_graph.model, run)
        variant_folds, reasons = _folds_of_run(variant, FoldGraph(variant))
        for path, fold in list(folds.items()):
            if path not in variant_folds or not _same_shifts(fold, variant_folds[path]):
                shapes = ", ".join(str(run.values[value].shape) for value in run.inputs)
                reason = reasons.get(path, "it adds a constant, but other layers take it in, or it adds another one")
                refused[path] = f"on an input of shape {shapes}: {reason}"
                del folds[path]
    return list(folds.values()), refused


def _folds_of_run(block_graph: BlockGraph, graph: FoldGraph) -> tuple[dict[str, ConstantFold], dict[str, str]]:
    """What can be folded and what not, each by the path of its block, as far as this one run tells."""
    constant_values = constants(graph)
    folds, refused = {}, {}
    for block in block_graph.chain:
        additions = block_graph.additions.get(block.path, ())
        if not additions or any(addition.branch not in constant_values for addition in additions):
            continue
        try:
            folds[block.path] = _fold_of(block, additions, constant_values, graph)
        except _ConstantStopsError as stopped:
            refused[block.path] = f"it adds a constant, but {stopped}"
    return folds, refused


def _same_shifts(fold: ConstantFold, variant: ConstantFold) -> bool:
    """Whether the same layers take in the same numbers, in any order."""
    shifts, variants = ({layer.path: numbers for layer, numbers in each.shifts} for each in (fold, variant))
    return shifts.keys() == variants.keys() and all(torch.equal(shifts[path], variants[path]) for path in shifts)


def _fold_of(
    block: Block, additions: tuple[Addition, ...], constant_values: dict[int, ChannelConstant], graph: FoldGraph
) -> ConstantFold:
    if not block.removable:
        raise _ConstantStopsError(f"it cannot go: {block.reason}")
    if not any(bool(constant_values[addition.branch].numbers.any()) for addition in additions):
        raise _ConstantStopsError("that is zero: removing the block (--exact) is the whole work")
    shapes = graph.trace.values
    if any(shapes[addition.branch].shape != shapes[addition.result].shape for addition in additions):
        raise _ConstantStopsError("its branch is broadcast")
    if has_forward_hooks(graph.model.get_submodule(block.path)):
        raise _ConstantStopsError("it carries hooks, which would see the stream without it")
    return ConstantFold(block.path, tuple(ConstantPropagation(graph, additions, constant_values).run()))


def constants(graph: FoldGraph) -> dict[int, ChannelConstant]:
    """The values of the run that are one constant a channel, by the weights."""
    values: dict[int, ChannelConstant] = {}
    for op in graph.trace.ops:
        constant = _constant(op, graph.layers.get(op.index), values)
        if constant is not None and len(op.outputs) == 1 and not op.changed:
            values[op.outputs[0]] = constant
    return values


def _constant(
    op: OpRecord, layer: FoldLayer | None, constant_values: dict[int, ChannelConstant]
) -> ChannelConstant | None:
    inputs = [constant_values.get(value) for value in op.inputs]
    if layer is not None:
        return _layer_constant(layer, constant_values.get(layer.source))
    if op.signature is None:
        return None
    name = op.signature.name
    if name == "add" and add_operands(op) is not None and len(inputs) == 2:
        first, second = inputs
        same = first is not None and second is not None and first.axis == second.axis
        same = same and first.numbers.shape == second.numbers.shape  # type: ignore[union-attr]
        return ChannelConstant(first.numbers + second.numbers, first.axis) if same else None  # type: ignore[union-attr]
    if len(inputs) == 1 and inputs[0] is not None:
        if name in _ELEMENTWISE:
            return ChannelConstant(_ELEMENTWISE[name](inputs[0].numbers), inputs[0].axis)
        if name in _UNCHANGED:
            return inputs[0]
    return None


def _layer_constant(layer: FoldLayer, constant: ChannelConstant | None) -> ChannelConstant | None:
    if layer.name == "batch_norm":
        scale, shift = scale_and_shift(layer)
        if not bool(scale.any()):
            return ChannelConstant(shift, 1)
        return (
            ChannelConstant(constant.numbers * scale + shift, 1)
            if constant is not None and constant.axis == 1
            else None
        )
    module = layer.module
    bias = as_float64(module.bias, module.weight.shape[1] * layer.groups if layer.transposed else len(module.weight))
    axis = _axis(layer)
    if not bool(as_float64(module.weight, 0).any()) or (constant is not None and not bool(constant.numbers.any())):
        return ChannelConstant(bias, axis)
    if constant is None or layer.pads or constant.axis != axis:
        return None
    return ChannelConstant(response(layer, constant.numbers) + bias, axis)


def _axis(layer: FoldLayer) -> int:
    """Where its channels lie."""
    return -1 if layer.name == "linear" else 1


class ConstantPropagation:
    """Follows the missing constant from the additions to everybody who reads the stream."""

    def __init__(
        self, graph: FoldGraph, additions: tuple[Addition, ...], constant_values: dict[int, ChannelConstant]
    ) -> None:
        self.graph, self.constant_values = graph, constant_values
        self.additions = {addition.op: addition for addition in additions}
        self.skipped = {op for addition in additions for op in addition.branch_ops}
        self.missing: dict[int, ChannelConstant] = {}
        self.shifts: list[tuple[FoldLayer, Tensor]] = []

    def run(self) -> list[tuple[FoldLayer, Tensor]]:
        """The layers that take it in and how much less each of their inputs is."""
        for op in self.graph.trace.ops[min(self.additions) :]:
            if op.index in self.additions or (
                op.index not in self.skipped and any(value in self.missing for value in op.inputs)
            ):
                self._pass(op)
        if any(value in self.missing for value in tensor_refs(self.graph.trace.output)):
            raise _ConstantStopsError("the network returns the stream itself")
        return self.shifts

    def _pass(self, op: OpRecord) -> None:
        if len(op.outputs) > 1:
            raise _ConstantStopsError(f"{self._where(op)} changes the stream in place or in parts")
        layer, name = self.graph.layers.get(op.index), op.signature.name if op.signature is not None else ""
        constant: ChannelConstant | None
        if name == "add":
            constant = self._sum(op)
        elif layer is not None:
            constant = self._layer(op, layer, self.missing[layer.source])
        elif self._keeps(op, name):
            constant = self.missing[op.inputs[0]]
        else:
            raise _ConstantStopsError(f"{self._where(op)} reads the stream, and no constant passes through it")
        if constant is not None:
            self.missing[op.outputs[0]] = constant

    def _sum(self, op: OpRecord) -> ChannelConstant:
        operands, shape = add_operands(op), self.graph.trace.values[op.outputs[0]].shape
        values = self.graph.trace.values
        if operands is None or any(values[value].shape != shape for value in operands):
            raise _ConstantStopsError(f"{self._where(op)} broadcasts")
        parts = [self.missing[value] for value in operands if value in self.missing]
        if op.index in self.additions:
            addition = self.additions[op.index]
            parts = [self.missing[addition.stream]] if addition.stream in self.missing else []
            parts.append(self.constant_values[addition.branch])
        if len({part.axis for part in parts}) > 1:
            raise _ConstantStopsError(f"{self._where(op)} joins two layouts")
        return ChannelConstant(torch.stack([part.numbers for part in parts]).sum(0), parts[0].axis)

    def _layer(self, op: OpRecord, layer: FoldLayer, constant: ChannelConstant) -> ChannelConstant | None:
        axis = _axis(layer)
        dimensions = len(self.graph.trace.values[op.inputs[0]].shape)
        if constant.axis % dimensions != axis % dimensions:
            raise _ConstantStopsError(f"'{layer.path}' reads another axis")
        if layer.name != "batch_norm" and layer.pads:
            raise _ConstantStopsError(f"'{layer.path}' reads the stream with zeros around it: its border would differ")
        if layer.name != "batch_norm" and layer.module.bias is None:
            return ChannelConstant(response(layer, constant.numbers), axis)
        self.shifts.append((layer, constant.numbers))
        return None

    def _keeps(self, op: OpRecord, name: str) -> bool:
        """Whether an operation hands a constant added to its input through to its output."""
        constant = self.missing[op.inputs[0]]
        values = self.graph.trace.values
        if len(op.inputs) > 1 or values[op.inputs[0]].dtype != values[op.outputs[0]].dtype:
            return False
        if name in _UNCHANGED:
            return True
        if name in _ADAPTIVE_POOLS:
            return constant.axis == 1
        if name in _POOLS:
            padding = _argument(op, "padding", 0)
            plain = not any(padding if isinstance(padding, (tuple, list)) else (padding,))
            ceiling = bool(_argument(op, "ceil_mode", False))
            divisor = _argument(op, "divisor_override", None)
            return constant.axis == 1 and plain and not ceiling and divisor is None
        if name == "mean":
            dims = _argument(op, "dim", None)
            size = len(self.graph.trace.values[op.inputs[0]].shape)
            listed = dims if isinstance(dims, (tuple, list)) else (dims,)
            return constant.axis == 1 and None not in listed and all(int(dim) % size > 1 for dim in listed)
        return False

    def _where(self, op: OpRecord) -> str:
        path = self.graph.trace.calls[op.call].path if op.call >= 0 else ""
        return f"{plain_name(op.name)} in '{path}'"


def _argument(op: OpRecord, name: str, default: Any) -> Any:
    return op.signature.get(name, default) if op.signature is not None else default


def take_in(fold: ConstantFold) -> str | None:
    """Shift the layers that read the stream; returns why the numbers do not allow it, then nothing has changed."""
    if not all(fits(layer.module, numbers) for layer, numbers in fold.shifts if layer.name != "batch_norm"):
        return "the constant exceeds the dtype of the weights"
    for layer, numbers in fold.shifts:
        module = layer.module
        if layer.name == "batch_norm":
            module.running_mean.copy_(as_float64(module.running_mean, 0) - numbers)
        else:
            set_parameter(module, "bias", as_float64(module.bias, 0) + response(layer, numbers))
    return None
