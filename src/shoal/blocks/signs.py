"""Which values of a run can never be negative: what lets a ReLU after a removed addition go too."""

from collections.abc import Iterable

from shoal.blocks.operations import KEEPS_SIGN, NON_NEGATIVE, plain_name
from shoal.blocks.trace import Op, Trace

_MODULES_KEEPING_SIGN = frozenset(
    [
        "MaxPool1d",
        "MaxPool2d",
        "AvgPool1d",
        "AvgPool2d",
        "AdaptiveAvgPool2d",
        "Dropout",
        "Dropout2d",
        "Identity",
        "ReLU",
        "ReLU6",
        "ZeroPad2d",
        "Flatten",
    ]
)


def non_negative_values(trace: Trace, zeros: Iterable[int] = ()) -> frozenset[int]:
    """The values that are at least 0 for every input of the network, by the operations that made them.

    Args:
        trace: a run of the network.
        zeros: values known to be zero, whatever made them.
    """
    found: set[int] = set(zeros)
    for op in trace.ops:
        if not _is_non_negative(op, found):
            continue
        for position, value in enumerate(op.outputs):
            overwritten = op.changed[position] if position < len(op.changed) else None
            # What shares memory with a tensor changed in place keeps its other elements as they were.
            if position == 0 or overwritten is None or overwritten in found:
                found.add(value)
    return frozenset(found)


def keeps_non_negative(name: str) -> bool:
    """Whether a function or module class maps non-negative inputs to non-negative results."""
    return name in _MODULES_KEEPING_SIGN or plain_name(name) in KEEPS_SIGN | NON_NEGATIVE


def _is_non_negative(op: Op, found: set[int]) -> bool:
    name = plain_name(op.name)
    if name in NON_NEGATIVE:
        return True
    if name == "hardtanh":
        low = op.kwargs.get("min_val", op.args[1] if len(op.args) > 1 else -1.0)
        return isinstance(low, (int, float)) and low >= 0
    if name not in KEEPS_SIGN or not op.inputs:
        return False
    numbers = [one for one in (*op.args, *op.kwargs.values()) if isinstance(one, (int, float))]
    if name in ("add", "mul", "pad") and any(one < 0 for one in numbers):
        return False
    if name == "interpolate" and op.kwargs.get("mode") == "bicubic":
        return False
    return all(value in found for value in op.inputs)
