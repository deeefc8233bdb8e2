"""Inner features of a block: those that only layers of the block see, so that there may be fewer of them.

Found by data flow, as everything: the outputs of a convolution or linear layer, followed through whatever works on each
feature alone (batch norms, depthwise convolutions, activations, a product with a gate), up to the layers that mix them.
If anything else reads one of them, they stay as they are.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from shoal.blocks import BlockGraph
from shoal.blocks.operations import plain_name
from shoal.blocks.trace import ModuleCall, OpRecord, Trace

_MIXING = (nn.Conv2d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
# Functions of one tensor that do to each feature what they do to any other.
_ALONE = frozenset(
    "relu relu6 hardtanh gelu silu hardswish hardsigmoid sigmoid tanh elu leaky_relu mish softplus clone".split()
)
# Functions of two: both have to be inner features of the same group.
_TOGETHER = frozenset(["mul", "add"])


@dataclass(frozen=True)
class ChannelGroup:
    """Inner features that can only go together: who makes them, who works on each alone, who reads them; how many."""

    writers: tuple[str, ...]
    keepers: tuple[str, ...]
    readers: tuple[str, ...]
    features: int


@dataclass
class _Flood:
    """One group as it is followed through the trace; `sound` as long as nothing else was met."""

    writers: set[int] = field(default_factory=set)
    keepers: set[int] = field(default_factory=set)
    readers: set[int] = field(default_factory=set)
    seen: set[int] = field(default_factory=set)
    sound: bool = True


def groups_of(graph: BlockGraph, block: str) -> list[ChannelGroup]:
    """The groups of inner features of a block, in the order they are made; blocks that run twice have none."""
    call = graph.calls.get(block)
    if call is None or len(graph.trace.calls_of(call.module)) != 1:
        return []
    groups: list[ChannelGroup] = []
    taken: set[int] = set()
    for layer in _layers(graph.trace, call):
        if layer.index in taken or not _is_mixing(layer.module):
            continue
        flood = _followed(graph.trace, call, layer)
        taken |= flood.writers
        # A layer that writes and reads the same features (a square of them) would have to change twice.
        if flood.sound and flood.readers and not flood.writers & flood.readers:
            groups.append(_group(graph.trace, flood))
    return groups


def importance(model: nn.Module, group: ChannelGroup) -> Tensor:
    """How much of each feature arrives at its readers: what makes it, its norm's scale included, times what reads it.

    A norm of weights on both sides, cf. the group magnitude of DepGraph, arXiv:2301.12900, Sec. 3.3.

    Returns:
        (features,), float64.
    """
    made = sum(_weight(model, path).flatten(1).square().sum(dim=1) for path in group.writers)
    read = sum(_columns(_weight(model, path)).square().sum(dim=1) for path in group.readers)
    scale = torch.ones_like(read)  # type: ignore[arg-type]
    for path in group.keepers:
        module = model.get_submodule(path)
        if isinstance(module, _NORMS):
            scale = scale * _scale(module, read)  # type: ignore[arg-type]
        else:
            scale = scale * _weight(model, path).flatten(1).norm(dim=1)
    return made.sqrt() * scale * read.sqrt()  # type: ignore[union-attr]


def _followed(trace: Trace, block: ModuleCall, layer: ModuleCall) -> _Flood:
    flood, pending = _Flood(), list(layer.outputs)
    owners = {op: inner_call for inner_call in _layers(trace, block) for op in range(inner_call.start, inner_call.stop)}
    features = _features(layer.module)
    while pending and flood.sound:
        value = pending.pop()
        if value in flood.seen:
            continue
        flood.seen.add(value)
        producer = trace.values[value].producer
        ops = [producer, *trace.readers.get(value, [])]
        outside = any(not block.holds(op) for op in ops) or value in block.outputs
        if outside or trace.values[value].shape[_axis(trace, value)] != features:
            flood.sound = False
            break
        pending += _met(trace, flood, owners, value, trace.ops[producer], made=True)
        for op in trace.readers.get(value, []):
            pending += _met(trace, flood, owners, value, trace.ops[op], made=False)
    return flood


def _met(
    trace: Trace, flood: _Flood, owners: dict[int, ModuleCall], value: int, op: OpRecord, *, made: bool
) -> list[int]:
    """The values that belong to the group because this operation made or read one that does."""
    owner = owners.get(op.index)
    if owner is not None and _is_mixing(owner.module):
        (flood.writers if made else flood.readers).add(owner.index)
        flood.sound = flood.sound and (value in owner.outputs if made else owner.inputs == [value])
        return []
    if owner is not None and _is_keeping(owner.module) and len(owner.inputs) == 1:
        flood.keepers.add(owner.index)
        return [*owner.inputs, *owner.outputs]
    tensors = [index for index in op.inputs if trace.values[index].origin == "op"]
    name, whole = plain_name(op.name), trace.values[value].shape
    alike = all(trace.values[index].shape == whole for index in (*op.inputs, *op.outputs))
    max_inputs = 1 if name in _ALONE else 2 if name in _TOGETHER else 0
    # A number beside the tensor (x * 2) is no input; a parameter (a scale by feature) would have to change too.
    if not alike or not tensors or len(set(op.inputs)) > max_inputs or len(tensors) != len(op.inputs):
        flood.sound = False
        return []
    return [*op.inputs, *op.outputs]


def _group(trace: Trace, flood: _Flood) -> ChannelGroup:
    def paths(calls: set[int]) -> tuple[str, ...]:
        return tuple(trace.calls[index].path for index in sorted(calls))

    first = trace.calls[min(flood.writers)].module
    return ChannelGroup(paths(flood.writers), paths(flood.keepers), paths(flood.readers), _features(first))


def _layers(trace: Trace, block: ModuleCall) -> Iterator[ModuleCall]:
    """The innermost calls in a block of layers that are called just once."""
    for call in trace.calls[block.index + 1 :]:
        if call.start >= block.stop:
            break
        known = _is_mixing(call.module) or _is_keeping(call.module)
        if known and block.holds(call.start) and len(trace.calls_of(call.module)) == 1:
            yield call


def _axis(trace: Trace, value: int) -> int:
    """Where the features are: images have them first."""
    return 1 if len(trace.values[value].shape) == 4 else -1


def _is_mixing(module: nn.Module) -> bool:
    return type(module) in _MIXING and getattr(module, "groups", 1) == 1


def _is_keeping(module: nn.Module) -> bool:
    depthwise = type(module) is nn.Conv2d and module.groups == module.in_channels == module.out_channels > 1
    return isinstance(module, _NORMS) or depthwise


def _features(module: nn.Module) -> int:
    return len(module.weight)  # type: ignore[arg-type]


def _weight(model: nn.Module, path: str) -> Tensor:
    return model.get_submodule(path).weight.detach().double()  # type: ignore[operator]


def _columns(weight: Tensor) -> Tensor:
    return weight.transpose(0, 1).flatten(1)


def _scale(norm: Any, like: Tensor) -> Tensor:
    """What a norm multiplies each feature by; 1 where it takes its statistics from the mini-batch."""
    if norm.running_var is None:
        return torch.ones(norm.num_features, dtype=like.dtype, device=like.device)
    gamma = norm.weight.detach().double() if norm.weight is not None else 1.0
    scale: Tensor = gamma / (norm.running_var.double() + norm.eps).sqrt()
    return scale.abs()
