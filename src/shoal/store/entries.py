"""Entries of a state dict that a weights file cannot hold: plain data, and packed or quantised weights.

They become JSON that refers to tensors, and come back as what they were: dicts, lists, tuples, numbers, strings,
dtypes, tensors, and tensors that torch itself quantised. Anything else would need a pickle, and is refused.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

# The dtypes that safetensors holds.
_KNOWN = frozenset(
    getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "complex64"),
        *("uint64", "uint32", "uint16"),
    )
)
_DTYPES = {str(dtype): dtype for dtype in (*_KNOWN, torch.complex128, torch.qint8, torch.quint8, torch.qint32)}
_PLAIN = (bool, int, float, str)


def is_plain_tensor(value: Any) -> bool:
    """Whether a weights file holds it as it is."""
    if not isinstance(value, Tensor) or value.is_quantized:
        return False
    return value.layout == torch.strided and value.dtype in _KNOWN


def special_entries(model: nn.Module) -> dict[str, Any]:
    """What is in the state dict of a network and no weights file holds."""
    return {name: value for name, value in model.state_dict().items() if not is_plain_tensor(value)}


def encode(value: Any, keep: Callable[[Tensor], str]) -> Any:
    """A value as JSON.

    Args:
        value: of a state dict.
        keep: takes a tensor and returns the name it is kept by.

    Raises:
        TypeError: something in it is no plain data; names its type.
    """
    if value is None or type(value) in _PLAIN:
        return value
    if isinstance(value, torch.dtype) and str(value) in _DTYPES:
        return {"dtype": str(value)}
    if is_plain_tensor(value):
        return {"tensor": keep(value)}
    if isinstance(value, Tensor) and value.is_quantized:
        return {"quantised": _quantised(value, keep)}
    if type(value) is list:
        return [encode(part, keep) for part in value]
    if type(value) is tuple:
        return {"tuple": [encode(part, keep) for part in value]}
    if type(value) in (dict, OrderedDict):
        kind = "dict" if type(value) is dict else "ordered"
        return {kind: [[encode(key, keep), encode(part, keep)] for key, part in value.items()]}
    if isinstance(value, Tensor):
        raise TypeError(f"a tensor of {value.dtype}, {value.layout}")
    raise TypeError(f"a {type(value).__name__}")


def decode(data: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `encode` was given.

    Raises:
        KeyError, TypeError, ValueError: no such data.
    """
    if isinstance(data, list):
        return [decode(part, tensors) for part in data]
    if not isinstance(data, dict):
        return data
    ((kind, content),) = data.items()
    if kind == "dtype":
        return _DTYPES[content]
    if kind == "tensor":
        return tensors[content]
    if kind == "quantised":
        return _from_quantised(content, tensors)
    if kind == "tuple":
        return tuple(decode(part, tensors) for part in content)
    if kind in ("dict", "ordered"):
        pairs = [(decode(key, tensors), decode(part, tensors)) for key, part in content]
        return dict(pairs) if kind == "dict" else OrderedDict(pairs)
    raise ValueError(f"unknown kind of data '{kind}'")


def _quantised(tensor: Tensor, keep: Callable[[Tensor], str]) -> dict[str, Any]:
    if str(tensor.dtype) not in _DTYPES:
        raise TypeError(f"a tensor of {tensor.dtype}")
    whole = keep(tensor.int_repr())
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return {"values": whole, "scale": tensor.q_scale(), "zero": tensor.q_zero_point()}
    scales, zeros = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
    return {"values": whole, "scales": keep(scales), "zeros": keep(zeros), "axis": tensor.q_per_channel_axis()}


def _from_quantised(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tensor:
    whole = tensors[data["values"]]
    if "axis" not in data:
        return torch._make_per_tensor_quantized_tensor(whole, data["scale"], data["zero"])
    scales, zeros = tensors[data["scales"]], tensors[data["zeros"]]
    return torch._make_per_channel_quantized_tensor(whole, scales, zeros, data["axis"])
