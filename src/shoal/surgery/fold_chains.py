"""Two linear maps with nothing between them are one: W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2).

The second works on single positions (a linear layer, a 1 x 1 convolution without padding), so the first keeps its
kernel, its padding and its borders. They are merged only where that costs no more multiplications.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from shoal.surgery.fold_layers import LINEAR_MAPS, FoldGraph, FoldLayer, fits, wide, write


@dataclass(frozen=True)
class ChainFold:
    """The second of two layers and the first, which takes it in; `costs` is a reason where that is dearer."""

    second: FoldLayer
    into: FoldLayer
    costs: str | None


def find_chain_fold(graph: FoldGraph, second: FoldLayer) -> ChainFold | str | None:
    """The layer before that can take this one in; why not where two follow each other; None where they do not."""
    first = graph.maker(second.source)
    if first is None or first is second:
        return None
    reason = _why_not(graph, first, second)
    return reason if reason is not None else ChainFold(second, first, _dearer(graph, first, second))


def _why_not(graph: FoldGraph, first: FoldLayer, second: FoldLayer) -> str | None:
    before = graph.path(first)
    if graph.only_reader(first.result) is not second:
        return f"the output of '{before}' is read elsewhere too"
    if first.transposed or second.transposed or LINEAR_MAPS[first.name] != LINEAR_MAPS[second.name]:
        return f"'{before}' is a map of another kind"
    if first.groups > 1 or second.groups > 1:
        return f"it or '{before}' works in groups"
    if prod(second.module.weight.shape[2:]) > 1 or second.pads:
        return "it looks at more than one position"
    return None


def _dearer(graph: FoldGraph, first: FoldLayer, second: FoldLayer) -> str | None:
    """Whether the merged layer multiplies more often than both, by the shapes of the run."""
    one, other = first.module.weight.numel(), second.module.weight.numel()
    merged = other // second.module.weight.shape[1] * (one // first.module.weight.shape[0])
    at_first, at_second = (_positions(graph, layer) for layer in (first, second))
    before, after = at_first * one + at_second * other, at_second * merged
    if after <= before:
        return None
    return f"merged with '{graph.path(first)}' it would cost {after / before:.2g} times the multiplications of both"


def _positions(graph: FoldGraph, layer: FoldLayer) -> int:
    shape = graph.shape(layer.result)
    return prod(shape[:-1]) if layer.name == "linear" else shape[0] * prod(shape[2:])


def carry_out_chain(fold: ChainFold, *, unchecked: bool = False) -> str | None:
    """Write the product into the first layer; returns why the numbers do not allow it, then nothing has changed."""
    first, second = fold.into.module, fold.second.module
    left, right = wide(second.weight, 0).flatten(1), wide(first.weight, 0)
    weight = torch.tensordot(left, right, dims=1)
    bias = wide(second.bias, len(left)) + left @ wide(first.bias, len(right))
    if not unchecked and not fits(first, weight, bias):
        return f"the merged numbers exceed {first.weight.dtype}"
    if first.bias is not None or second.bias is not None:
        write(first, "bias", bias)
    write(first, "weight", weight)
    _resize(first, second)
    return None


def _resize(first: Any, second: Any) -> None:
    """The attributes of the first layer after it took the second in; strides multiply."""
    if hasattr(first, "out_features"):
        first.out_features = second.out_features
        return
    first.out_channels = second.out_channels
    first.stride = tuple(a * b for a, b in zip(first.stride, second.stride, strict=True))
