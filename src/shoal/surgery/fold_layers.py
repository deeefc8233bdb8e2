"""Fold layers into their neighbours: a batch norm into a linear map, a linear map into the one before it.

A batch norm in eval mode is one scale and one shift per channel (Jacob et al. 2018, arXiv:1712.05877, section 3.2); a
batch norm *before* a layer goes into it only where no border is padded with zeros, or where nothing is shifted.

Two linear maps with nothing between them are one: W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2). The second works on
single positions (a linear layer, a 1 x 1 convolution without padding), so the first keeps its kernel, its padding and
its borders. They are merged only where that costs no more multiplications.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from shoal.surgery.fold_graph import LINEAR_MAPS, FoldGraph, FoldLayer, as_float64, fits, set_parameter


@dataclass(frozen=True)
class NormFold:
    """A batch norm and the layer that takes it in; `assumption` says what its weights must fulfil, None for nothing."""

    norm: FoldLayer
    into: FoldLayer
    behind: bool
    assumption: str | None


def find_norm_fold(graph: FoldGraph, norm: FoldLayer) -> NormFold | str:
    """The layer that can take a batch norm in, by structure alone; else why there is none."""
    before = graph.producer(norm.source)
    if before is None:
        reason = f"its input comes from {graph.describe(norm.source)}"
    elif graph.sole_consumer(before.result) is not norm:
        reason = f"the output of '{graph.path(before)}' is read elsewhere too"
    elif not _channels_match(graph, before, norm.source):
        reason = f"it normalises another axis than the channels of '{graph.path(before)}'"
    else:
        return NormFold(norm, before, True, None)
    behind = graph.sole_consumer(norm.result)
    if behind is None or behind.name not in LINEAR_MAPS or behind not in graph.maps:
        return f"{reason}, and no convolution or linear layer alone reads its output"
    if not _channels_match(graph, behind, norm.result):
        return f"{reason}, and '{graph.path(behind)}' behind it reads another axis"
    if graph.overwritten(norm.source, norm.op.index, behind.op.index):
        return f"{reason}, and its input is overwritten before '{graph.path(behind)}' runs"
    assumption = (
        f"'{graph.path(behind)}' behind it has borders, where a shift would be missing" if behind.pads else None
    )
    return NormFold(norm, behind, False, assumption)


def _channels_match(graph: FoldGraph, layer: FoldLayer, value: int) -> bool:
    return len(graph.trace.values[value].shape) == LINEAR_MAPS[layer.name] + 2


def carry_out_norm(fold: NormFold, *, unchecked: bool = False) -> str | None:
    """Change the weights of the layer; returns why its numbers do not allow it, and then nothing has changed.

    Args:
        fold: what to do.
        unchecked: do not look at the numbers: others are about to be loaded.
    """
    scale, shift = scale_and_shift(fold.norm)
    if fold.assumption and not unchecked and bool(shift.any()):
        return fold.assumption
    weight, bias = (_fold_after if fold.behind else _fold_before)(fold.into, scale, shift)
    if not unchecked and not fits(fold.into.module, weight, bias):
        return f"the folded numbers exceed {fold.into.module.weight.dtype}"
    set_parameter(fold.into.module, "bias", bias)
    set_parameter(fold.into.module, "weight", weight)
    return None


def scale_and_shift(norm: FoldLayer) -> tuple[Tensor, Tensor]:
    """What a batch norm multiplies with and adds, per channel, in float64."""
    module, eps = norm.module, float(norm.setting("eps", 1e-5))
    mean, variance = as_float64(module.running_mean, 0), as_float64(module.running_var, 0)
    gamma = as_float64(module.weight, 0) if module.weight is not None else torch.ones_like(mean)
    scale = gamma / torch.sqrt(variance + eps)
    return scale, as_float64(module.bias, len(mean)) - mean * scale


def _fold_after(layer: FoldLayer, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    weight, bias = as_float64(layer.module.weight, 0), as_float64(layer.module.bias, len(scale))
    if not layer.transposed:
        scaled = weight * scale.view(-1, *[1] * (weight.dim() - 1))
    else:
        parts = weight.view(layer.groups, -1, *weight.shape[1:])
        scaled = (parts * scale.view(layer.groups, 1, -1, *[1] * (weight.dim() - 2))).view(weight.shape)
    return scaled, bias * scale + shift


def _fold_before(layer: FoldLayer, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    weight = as_float64(layer.module.weight, 0)
    if layer.transposed:  # taken only with a shift of zero
        outputs = weight.shape[1] * layer.groups
        return weight * scale.view(-1, *[1] * (weight.dim() - 1)), as_float64(layer.module.bias, outputs)
    bias = as_float64(layer.module.bias, len(weight)) + response(layer, shift)
    parts = weight.view(layer.groups, -1, *weight.shape[1:])
    scaled = parts * scale.view(layer.groups, 1, -1, *[1] * (weight.dim() - 2))
    return scaled.view(weight.shape), bias


def response(layer: FoldLayer, constant: Tensor) -> Tensor:
    """What a layer that pads nothing makes of one constant a channel, without its bias."""
    weight = as_float64(layer.module.weight, 0)
    parts = weight.view(layer.groups, -1, *weight.shape[1:])
    per_input = parts * constant.view(layer.groups, 1, -1, *[1] * (weight.dim() - 2))
    return per_input.flatten(2).sum(2).flatten()


@dataclass(frozen=True)
class ChainFold:
    """The second of two layers and the first, which takes it in; `costs` is a reason where that is dearer."""

    second: FoldLayer
    into: FoldLayer
    costs: str | None


def find_chain_fold(graph: FoldGraph, second: FoldLayer) -> ChainFold | str | None:
    """The layer before that can take this one in; why not where two follow each other; None where they do not."""
    first = graph.producer(second.source)
    if first is None or first is second:
        return None
    reason = _chain_obstacle(graph, first, second)
    return reason if reason is not None else ChainFold(second, first, _cost_reason(graph, first, second))


def _chain_obstacle(graph: FoldGraph, first: FoldLayer, second: FoldLayer) -> str | None:
    before = graph.path(first)
    if graph.sole_consumer(first.result) is not second:
        return f"the output of '{before}' is read elsewhere too"
    if first.transposed or second.transposed or LINEAR_MAPS[first.name] != LINEAR_MAPS[second.name]:
        return f"'{before}' is a map of another kind"
    if first.groups > 1 or second.groups > 1:
        return f"it or '{before}' works in groups"
    if prod(second.module.weight.shape[2:]) > 1 or second.pads:
        return "it looks at more than one position"
    return None


def _cost_reason(graph: FoldGraph, first: FoldLayer, second: FoldLayer) -> str | None:
    """Whether the merged layer multiplies more often than both, by the shapes of the run."""
    first_size, second_size = first.module.weight.numel(), second.module.weight.numel()
    merged = second_size // second.module.weight.shape[1] * (first_size // first.module.weight.shape[0])
    at_first, at_second = (_positions(graph, layer) for layer in (first, second))
    before, after = at_first * first_size + at_second * second_size, at_second * merged
    if after <= before:
        return None
    return f"merged with '{graph.path(first)}' it would cost {after / before:.2g} times the multiplications of both"


def _positions(graph: FoldGraph, layer: FoldLayer) -> int:
    shape = graph.shape(layer.result)
    return prod(shape[:-1]) if layer.name == "linear" else shape[0] * prod(shape[2:])


def carry_out_chain(fold: ChainFold, *, unchecked: bool = False) -> str | None:
    """Write the product into the first layer; returns why the numbers do not allow it, then nothing has changed."""
    first, second = fold.into.module, fold.second.module
    second_weight, first_weight = as_float64(second.weight, 0).flatten(1), as_float64(first.weight, 0)
    weight = torch.tensordot(second_weight, first_weight, dims=1)
    bias = as_float64(second.bias, len(second_weight)) + second_weight @ as_float64(first.bias, len(first_weight))
    if not unchecked and not fits(first, weight, bias):
        return f"the merged numbers exceed {first.weight.dtype}"
    if first.bias is not None or second.bias is not None:
        set_parameter(first, "bias", bias)
    set_parameter(first, "weight", weight)
    _resize(first, second)
    return None


def _resize(first: Any, second: Any) -> None:
    """The attributes of the first layer after it took the second in; strides multiply."""
    if hasattr(first, "out_features"):
        first.out_features = second.out_features
        return
    first.out_channels = second.out_channels
    first.stride = tuple(a * b for a, b in zip(first.stride, second.stride, strict=True))
