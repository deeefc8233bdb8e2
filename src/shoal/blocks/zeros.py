"""Which values of a run are zero whatever comes in: the proof that a branch is statically zero.

Abstract interpretation over the traced operations with one property, "every element is 0 for every finite input", read
off the weights: a last convolution without weight and bias, a batch norm with gamma = beta = 0, a LayerScale of 0.
"""

import torch
from torch import Tensor, nn

from shoal.blocks.operations import STRUCTURE, plain_name
from shoal.blocks.template import Ref
from shoal.blocks.trace import Op, Trace
from shoal.offloaded import real

# f(0) = 0, element by element or by sums.
_KEEPS_ZERO = STRUCTURE | frozenset(
    [
        "relu",
        "relu6",
        "gelu",
        "silu",
        "tanh",
        "hardswish",
        "leaky_relu",
        "elu",
        "celu",
        "selu",
        "mish",
        "neg",
        "abs",
        "sin",
        "sqrt",
        "sum",
        "mean",
        "stochastic_depth",
        "drop_path",
        "interpolate",
        "square",
        "softsign",
        "tanhshrink",
        "hardshrink",
    ]
)
_PRODUCTS = frozenset(["mul", "matmul", "bmm", "einsum", "dot", "mm", "outer"])
_CONVOLUTIONS = frozenset(
    ["conv1d", "conv2d", "conv3d", "linear", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]
)
_NORMS = {"layer_norm": (2, 3), "group_norm": (2, 3), "rms_norm": (2, None), "batch_norm": (3, 4)}


def zero_values(trace: Trace, model: nn.Module) -> dict[int, str]:
    """The values that are zero for every finite input, each with the reason.

    Args:
        trace: a run of `model`.
        model: holds the weights the proof reads.
    """
    tensors: dict[str, Tensor] = dict(model.named_parameters()) | dict(model.named_buffers())
    found: dict[int, str] = {}
    for value in trace.values:
        tensor = tensors.get(value.name) if value.origin in ("parameter", "buffer") else None
        if tensor is not None:
            tensor = real(model, value.name, tensor)
        elif value.origin == "constant":
            tensor = trace.constants[value.index]
        if tensor is not None and tensor.numel() > 0 and not bool(torch.count_nonzero(tensor)):
            found[value.index] = f"'{value.name}' is zero" if value.name else "a constant is zero"
    for op in trace.ops:
        reason = None if op.changed and op.name == "__setitem__" else _why_zero(op, found)
        if reason is not None:
            found[op.outputs[0]] = reason
            if plain_name(op.name) in STRUCTURE:
                found.update(dict.fromkeys(op.outputs, reason))
    return found


def _why_zero(op: Op, found: dict[int, str]) -> str | None:
    name = plain_name(op.name)
    if name in _CONVOLUTIONS:
        return _all(found, [_argument(op, 2, "bias")], optional=True) and _any(
            found, [_argument(op, 1, "weight"), _argument(op, 0, "input")]
        )
    if name in _NORMS:
        at_weight, at_bias = _NORMS[name]
        scale = _all(found, [_argument(op, at_weight, "weight")])
        if at_bias is None or scale is None:
            return scale
        shift = _all(found, [_argument(op, at_bias, "bias")])
        return f"{scale} and {shift}" if shift else None
    if name == "addmm":
        return _all(found, [_argument(op, 0, "input")]) and _any(found, list(op.args[1:3]))
    if name == "multi_head_attention_forward":
        weight = _all(found, [_argument(op, 11, "out_proj_weight")])
        return weight and _all(found, [_argument(op, 12, "out_proj_bias")], optional=True) and weight
    if name in _PRODUCTS:
        return _any(found, list(op.args))
    if name in ("add", "sub"):
        return _all(found, list(op.args[:2]))
    if name in _KEEPS_ZERO and not _pads_with_something(op, name):
        return _all(found, [Ref(value) for value in op.inputs])
    return None


def _argument(op: Op, position: int, name: str) -> object:
    if name in op.kwargs:
        return op.kwargs[name]
    return op.args[position] if position < len(op.args) else None


def _any(found: dict[int, str], arguments: list[object]) -> str | None:
    return next((found[one.value] for one in arguments if isinstance(one, Ref) and one.value in found), None)


def _all(found: dict[int, str], arguments: list[object], *, optional: bool = False) -> str | None:
    """The first reason if every argument is zero; an absent one counts as zero only where it is optional."""
    reason = "nothing is added" if optional else None
    for one in arguments:
        if one is None and optional:
            continue
        if isinstance(one, Ref) and one.value in found:
            reason = found[one.value]
        elif not (isinstance(one, (int, float)) and one == 0):
            return None
    return reason


def _pads_with_something(op: Op, name: str) -> bool:
    if name != "pad":
        return False
    value = op.kwargs.get("value", op.args[3] if len(op.args) > 3 else 0)
    return value not in (None, 0, 0.0)
