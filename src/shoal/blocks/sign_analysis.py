"""Sign analysis: which values of a run are never negative, so that a ReLU after a removed addition can go too."""

from collections.abc import Callable, Collection, Iterable, Set
from typing import Any

from shoal.blocks.operations import KEEPS_SIGN, NON_NEGATIVE, OpSignature, parts_of
from shoal.blocks.template import TensorRef
from shoal.blocks.trace import OpRecord, Trace

# Interpolation that overshoots is none of these.
_MODES = frozenset(["nearest", "nearest-exact", "linear", "bilinear", "trilinear", "area"])


def non_negative_values(trace: Trace, zeros: Iterable[int] = ()) -> frozenset[int]:
    """The values that are at least 0 for every input of the network, by the operations that made them.

    Args:
        trace: a run of the network.
        zeros: values that are zero, whatever made them.
    """
    non_negative: set[int] = set(zeros)
    for op in trace.ops:
        non_negative.update(non_negative_results(trace, op, non_negative))
    return frozenset(non_negative)


def non_negative_results(trace: Trace, op: OpRecord, non_negative: Set[int]) -> list[int]:
    """What an operation makes that is never negative, where the values `non_negative` are not."""
    signature = op.signature
    if signature is None or not _is_non_negative(signature, non_negative):
        return []
    several = [] if op.value is not None or op.changed else op.outputs
    results = [op.value] if op.value is not None else several
    # What shares memory with a tensor changed in place keeps its other elements as they were.
    aliases = [value for value, before in zip(op.outputs, op.changed, strict=False) if before in non_negative]
    return [value for value in (*results, *aliases) if trace.values[value].dtype.is_floating_point]


def _is_non_negative(signature: OpSignature, non_negative: Collection[int]) -> bool:
    name = signature.name
    rule = _RULES.get(name)
    if rule is not None:
        return rule(signature, non_negative)
    if name in NON_NEGATIVE:
        return True
    if name in KEEPS_SIGN:
        return _all(non_negative, parts_of(signature.get("tensors", signature.get("input"))))
    return False


def _all(non_negative: Collection[int], items: Iterable[object]) -> bool:
    listed = list(items)
    return bool(listed) and all(_at_least_0(non_negative, item) for item in listed)


def _at_least_0(non_negative: Collection[int], item: object) -> bool:
    if isinstance(item, TensorRef):
        return item.value in non_negative
    return isinstance(item, (int, float)) and item >= 0


def _both(first: str, second: str) -> Callable[[OpSignature, Collection[int]], bool]:
    return lambda signature, non_negative: _all(non_negative, (signature.get(first), signature.get(second)))


def _above(bound: str) -> Callable[[OpSignature, Collection[int]], bool]:
    """Whatever comes in, nothing below this argument comes out."""
    return lambda signature, non_negative: _at_least_0(non_negative, signature.get(bound))


def _sum(signature: OpSignature, non_negative: Collection[int]) -> bool:
    scaled = _at_least_0(non_negative, signature.get("alpha", 1))
    return scaled and _all(non_negative, (signature.get("input"), signature.get("other")))


def _pad(signature: OpSignature, non_negative: Collection[int]) -> bool:
    return _all(non_negative, (signature.get("input"), signature.get("value") or 0))


def _clamp(signature: OpSignature, non_negative: Collection[int]) -> bool:
    low, high = signature.get("min"), signature.get("max")
    return (_at_least_0(non_negative, low) or _at_least_0(non_negative, signature.get("input"))) and (
        high is None or _at_least_0(non_negative, high)
    )


def _pool(signature: OpSignature, non_negative: Collection[int]) -> bool:
    divisor = signature.get("divisor_override")
    return _at_least_0(non_negative, signature.get("input")) and (divisor is None or divisor > 0)


def _resized(signature: OpSignature, non_negative: Collection[int]) -> bool:
    return _at_least_0(non_negative, signature.get("input")) and signature.get("mode") in _MODES


def _view(signature: OpSignature, non_negative: Collection[int]) -> bool:
    return _at_least_0(non_negative, signature.get("input")) and signature.get("dtype") is None  # else other numbers


def _softplus(signature: OpSignature, non_negative: Collection[int]) -> bool:
    beta, threshold = signature.get("beta"), signature.get("threshold")
    return _at_least_0((), threshold) and isinstance(beta, (int, float)) and beta > 0  # above it x itself comes out


def _max(signature: OpSignature, non_negative: Collection[int]) -> bool:
    operand: Any = signature.get("other", 0)
    return _all(non_negative, (signature.get("input"), operand))


_RULES: dict[str, Callable[[OpSignature, Collection[int]], bool]] = {
    "add": _sum,
    "mul": _both("input", "other"),
    "where": _both("input", "other"),
    "masked_fill": _both("input", "value"),
    "max": _max,
    "maximum": lambda signature, non_negative: any(
        _at_least_0(non_negative, signature.get(name)) for name in ("input", "other")
    ),
    "minimum": _both("input", "other"),
    "hardtanh": lambda signature, non_negative: _all(
        non_negative, (signature.get("min_val"), signature.get("max_val"))
    ),
    "clamp": _clamp,
    "clamp_min": _above("min"),
    "copy": _above("src"),
    "threshold": lambda signature, non_negative: _all(
        non_negative, (signature.get("threshold"), signature.get("value"))
    ),
    "pad": _pad,
    "interpolate": _resized,
    "upsample": _resized,
    "avg_pool2d": _pool,
    "avg_pool3d": _pool,
    "view": _view,
    "softplus": _softplus,
}
