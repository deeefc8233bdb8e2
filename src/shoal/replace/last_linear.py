"""The last linear map of a segment: the layer whose weights can be refitted in closed form.

In a residual branch it is the convolution or linear layer whose output is added to the stream, in a plain layer the
layer itself; a batch norm in eval mode after it is fused into the map, and carries its bias. So is a factor: a number
(residual scaling), or a parameter for each channel (LayerScale) or for all (ReZero). A linear layer may work on images
with the channels last, and their maps come back channels first (ConvNeXt).
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from shoal.blocks import BlockGraph
from shoal.blocks.additions import add_operands
from shoal.blocks.template import TensorRef, tensor_refs
from shoal.blocks.trace import ModuleCall, OpRecord, Trace
from shoal.preserve import copied
from shoal.replace.segments import Segment, SegmentChain, last_active_call, segment_calls

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
# How a parameter is brought to the shape of what it multiplies.
_RESHAPES = frozenset("view reshape unsqueeze view_as reshape_as flatten".split())
# A head of more weights than these (the vocabulary of a language model) is not worth its solution.
_MAX_HEAD = 2**21
# A channel that its batch norm scales by less than this share of the median is considered switched off.
_OFF = 1e-4


class HasSubmodules(Protocol):
    """A network, or some layers of one by their paths."""

    def get_submodule(self, target: str) -> nn.Module:
        """The module at this path."""


class LayerCopies(dict[str, nn.Module]):
    """Copies of single layers, by the paths of the originals."""

    def get_submodule(self, target: str) -> nn.Module:
        """The copy of the layer at this path."""
        return self[target]


@dataclass(frozen=True)
class LastLinear:
    """The layer whose output is added to the stream, and what it goes through on the way.

    Args:
        layer: its path.
        norm: of the batch norm after it, if any.
        biased: whether one of them can carry a bias.
        factor: what their output is multiplied by, float64, (outputs,) or a single number; None for nothing.
        moved: whether the channels, the last axis of the layer's output, are the second of what is added.
    """

    layer: str
    norm: str | None
    biased: bool = True
    factor: Tensor | None = field(default=None, compare=False)
    moved: bool = False

    @property
    def is_added_as_it_is(self) -> bool:
        """Whether nothing is done to what the layer returns before it is added."""
        return self.norm is None and self.factor is None and not self.moved

    def as_output(self, added: Tensor) -> Tensor:
        """What is added to the stream, laid out as the layer's output is."""
        return added.movedim(1, -1) if self.moved else added

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the layer, and of the norm if any."""
        return (self.layer,) if self.norm is None else (self.layer, self.norm)

    def copies(self, model: nn.Module) -> LayerCopies:
        """Copies of layer and norm, that `set_fused_` can write to."""
        return LayerCopies({path: copied(model.get_submodule(path)) for path in self.paths})

    def fused_weight(self, model: HasSubmodules) -> Tensor:
        """The map of layer, norm and factor as one matrix, (outputs, inputs x k x k), float64."""
        weight = model.get_submodule(self.layer).weight.detach().double()  # type: ignore[operator]
        return (weight * self._scale(model).reshape(-1, *[1] * (weight.dim() - 1))).flatten(1)

    def fused_bias(self, model: HasSubmodules) -> Tensor:
        """The bias of layer, norm and factor as one map, float64."""
        layer: Any = model.get_submodule(self.layer)
        scale = self._scale(model)
        bias = layer.bias.detach().double() if layer.bias is not None else torch.zeros_like(scale)
        if self.norm is None:
            return scale * bias
        norm: Any = model.get_submodule(self.norm)
        shift = norm.bias.double() * self._factor(scale)
        return (shift + scale * (bias - norm.running_mean.double())).detach()

    def set_fused_(self, model: HasSubmodules, weight: Tensor, bias: Tensor) -> None:
        """Set layer and norm so that, times the factor, they compute weight, bias; switched-off channels stay."""
        layer: Any = model.get_submodule(self.layer)
        scale = self._scale(model)
        on = scale.abs() > _OFF * scale.abs().median()
        weight, bias = weight.to(scale), bias.to(scale)
        divisor = torch.where(on, scale, 1)[:, None]
        _set_(layer.weight, on, (weight / divisor).reshape(layer.weight.shape))
        if not self.biased:
            return
        if self.norm is None:
            _set_(layer.bias, on, bias / divisor[:, 0])
            return
        norm: Any = model.get_submodule(self.norm)
        mean = norm.running_mean.double()
        if layer.bias is not None:
            mean = mean - layer.bias.detach().double()
        factor = torch.where(on, self._factor(scale), 1)
        _set_(norm.bias, on, (bias + scale * mean) / factor)

    def _scale(self, model: HasSubmodules) -> Tensor:
        """What the layer's outputs are multiplied by: by the norm, and by the factor."""
        layer: Any = model.get_submodule(self.layer)
        scale = torch.ones(len(layer.weight), dtype=torch.float64, device=layer.weight.device)
        if self.norm is not None:
            norm: Any = model.get_submodule(self.norm)
            scale = (norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)).detach()
        return scale * self._factor(scale)

    def _factor(self, like: Tensor) -> Tensor:
        return torch.ones_like(like) if self.factor is None else self.factor.to(like).expand_as(like)


def _set_(parameter: nn.Parameter, on: Tensor, values: Tensor) -> None:
    """Set some rows, in new memory of the same layout: in its own others may lie too."""
    changed = parameter.data.clone()
    changed[on] = values.to(changed)[on]
    parameter.data = changed


def last_linear(graph: BlockGraph, segment: Segment, max_unknowns: int, unit: int | None = None) -> LastLinear | None:
    """The last linear map of a segment; None where it ends in something else, or is too wide to be fitted.

    Args:
        graph: of the network.
        segment: of its chain.
        max_unknowns: inputs of the widest layer that is fitted.
        unit: of the block; by default the last addition counts, whatever its branches are.
    """
    if segment.residual:
        additions = graph.additions[segment.path] if unit is None else graph.unit_additions(segment.path)
        last = additions[-1 if unit is None else unit]
        operands = add_operands(graph.trace.ops[last.op]) or ()
        branch = next((value for value in operands if value != last.stream), None)
        calls = graph.trace.calls_in(graph.calls[segment.path])
    else:
        calls = segment_calls(graph, segment)
        last_call = last_active_call(calls)
        branch = (last_call.outputs if segment.tail == "identity" else last_call.inputs)[0]
    if branch is None:
        return None
    whole, branch, factors, moved = branch, *_before_factors(graph, branch)
    norm = _returning(graph.trace, calls, branch, _NORMS)
    layer = _returning(graph.trace, calls, norm.inputs[0] if norm else branch, (nn.Conv2d, nn.Linear))
    if layer is None or not _can_be_set(layer, norm, max_unknowns):
        return None
    if segment.residual and not _read_once(graph.trace, whole):
        return None
    factor = _by_output(factors, graph.trace.values[branch].shape, layer.module)
    if (factors and factor is None) or (moved and not isinstance(layer.module, nn.Linear)):
        return None
    shape = graph.trace.values[branch].shape
    if norm is not None and not (_is_norm_of(layer, norm, shape) and _read_once(graph.trace, norm.inputs[0])):
        return None
    biased = norm is not None or layer.module.bias is not None
    return LastLinear(layer.path, norm.path if norm else None, biased, factor, moved)


def _before_factors(graph: BlockGraph, value: int) -> tuple[int, list[Tensor], bool]:
    """What a value is before factors that never change, these, and whether its channels moved since."""
    trace, factors, moved = graph.trace, list[Tensor](), False
    while (producer := trace.values[value].producer) >= 0:
        op, rank = trace.ops[producer], len(trace.values[value].shape)
        product = _product(graph, op)
        source = product[0] if product is not None else _channels_last(op, rank)
        if source is None or op.value != value or not _read_once(trace, source) or (moved and product is None):
            break
        value = source
        if product is not None:
            factors.append(product[1])
        else:
            moved = True
            factors = [_padded(factor, rank).movedim(1, -1) for factor in factors]
    return value, factors, moved


def _channels_last(op: OpRecord, rank: int) -> int | None:
    """The tensor whose last axis an operation makes the second; None where it does anything else."""
    signature = op.signature
    if signature is None or rank < 3:
        return None
    if signature.name == "permute":
        dims = signature.get("dims")
        moves = isinstance(dims, (tuple, list)) and all(isinstance(dim, int) for dim in dims)
        order = [dim % rank for dim in dims] if moves and dims is not None else []
        return signature.tensor("input") if order == [0, rank - 1, *range(1, rank - 1)] else None
    places = signature.get("source"), signature.get("destination")
    return signature.tensor("input") if signature.name == "movedim" and places in ((-1, 1), (rank - 1, 1)) else None


def _padded(factor: Tensor, rank: int) -> Tensor:
    return factor.reshape((1,) * (rank - factor.dim()) + tuple(factor.shape))


def _product(graph: BlockGraph, op: OpRecord) -> tuple[int, Tensor] | None:
    """The tensor that an operation multiplies by something that never changes, and this; None where it does not."""
    signature = op.signature
    if signature is None or signature.name not in ("mul", "div") or signature.get("rounding_mode") is not None:
        return None
    pairs = [("input", "other")] if signature.name == "div" else [("input", "other"), ("other", "input")]
    for multiplied, by in pairs:
        value, factor = signature.tensor(multiplied), _constant(graph, signature.get(by))
        if value is not None and factor is not None and _constant(graph, signature.get(multiplied)) is None:
            return value, factor.reciprocal() if signature.name == "div" else factor
    return None


def _constant(graph: BlockGraph, item: object) -> Tensor | None:
    """A number, or a parameter or buffer as it is or reshaped, in float64; None for what is computed or changes."""
    if isinstance(item, (int, float)):
        return torch.tensor(float(item), dtype=torch.float64)
    if not isinstance(item, TensorRef):
        return None
    trace, shape = graph.trace, graph.trace.values[item.value].shape
    value = trace.values[item.value]
    while value.producer >= 0:
        signature = trace.ops[value.producer].signature
        source = signature.tensor("input") if signature is not None and signature.name in _RESHAPES else None
        if source is None:
            return None
        value = trace.values[source]
    if value.origin not in ("parameter", "buffer") or value.name in trace.written:
        return None
    path, _, name = value.name.rpartition(".")
    tensor = getattr(graph.model.get_submodule(path), name, None)
    if not isinstance(tensor, Tensor) or tensor.is_meta or not tensor.is_floating_point():
        return None
    return tensor.detach().double().reshape(shape)


def _by_output(factors: list[Tensor], shape: tuple[int, ...], layer: Any) -> Tensor | None:
    """Factors as one for each output of a layer; None where there are none, or they differ within a channel."""
    axis = len(shape) - 1 if isinstance(layer, nn.Linear) else 1
    total: Tensor | None = None
    for factor in factors:
        if factor.dim() > len(shape):
            return None
        whole = _padded(factor, len(shape)).shape
        if any(size != 1 for place, size in enumerate(whole) if place != axis):
            return None
        part = factor.reshape(-1) if factor.numel() > 1 else factor.reshape(())
        total = part if total is None else total * part
    return total


def network_head(graph: BlockGraph, chain: SegmentChain, max_unknowns: int) -> LastLinear | None:
    """The linear layer behind all segments that computes an output of the network; None where there is no such layer.

    Args:
        graph: of the network.
        chain: its segments.
        max_unknowns: inputs of the widest layer that is solved for.
    """
    outputs = set(tensor_refs(graph.trace.output))
    inside = tuple(f"{path}." for segment in chain.segments for path in segment.paths)
    covered = {path for segment in chain.segments for path in segment.paths}
    heads = [
        call
        for call in graph.trace.calls
        if type(call.module) is nn.Linear
        and set(call.outputs) & outputs
        and call.path not in covered
        and not call.path.startswith(inside)
    ]
    if len(heads) != 1 or not _is_single_op(graph.trace, heads[0]):
        return None
    layer: Any = heads[0].module
    if layer.in_features > max_unknowns or layer.weight.numel() > _MAX_HEAD:
        return None
    return LastLinear(heads[0].path, None, layer.bias is not None)


def _returning(trace: Trace, calls: list[ModuleCall], value: int, kinds: tuple[type, ...]) -> ModuleCall | None:
    call = next((call for call in calls if isinstance(call.module, kinds) and call.outputs == [value]), None)
    return call if call is not None and _is_single_op(trace, call) else None


def _is_single_op(trace: Trace, call: ModuleCall) -> bool:
    """Whether a module runs just its operation (subclasses may do more), with parameters that nothing else reads."""
    ops = trace.ops[call.start : call.stop]
    if len(trace.calls_of(call.module)) > 1 or [op.name for op in ops] not in (["conv2d"], ["linear"], ["batch_norm"]):
        return False
    parameters = [value for value in ops[0].inputs if trace.values[value].origin == "parameter"]
    return bool(parameters) and all(_read_once(trace, value) for value in parameters)


def _read_once(trace: Trace, value: int) -> bool:
    return len(trace.readers.get(value, [])) == 1


def _is_norm_of(layer: ModuleCall, norm: ModuleCall, shape: tuple[int, ...]) -> bool:
    """Whether the norm scales the layer's output channels: on tokens a BatchNorm1d normalises the positions."""
    axes = 2 if isinstance(layer.module, nn.Linear) else 4
    module: Any = norm.module
    tensors = (module.weight, module.bias, module.running_mean)
    return len(shape) == axes and all(tensor is not None for tensor in tensors)


def _can_be_set(layer: ModuleCall, norm: ModuleCall | None, max_unknowns: int) -> bool:
    module: Any = layer.module
    if isinstance(module, nn.Linear):
        return module.in_features <= max_unknowns
    k, dilation = module.kernel_size[0], module.dilation[0]
    plain = module.groups == 1 and module.padding_mode == "zeros" and k % 2 == 1
    square = module.kernel_size == (k, k) and module.stride == (module.stride[0],) * 2
    padded = module.padding == (dilation * (k // 2),) * 2 and module.dilation == (dilation,) * 2
    return bool(plain and square and padded and module.in_channels * k * k <= max_unknowns)
