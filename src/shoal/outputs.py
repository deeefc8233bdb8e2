"""Everything that a network returns, tensor by tensor, each under the name by which its user would reach it.

One tensor has the name `''`; the parts of a tuple or list are `[0]`, `[1]`; those of a dict, a ModelOutput, a named
tuple or a dataclass their keys; nested ones are joined: `aux.logits`, `feature_maps[2]`, `[0].boxes`. What a network
returns only to be handed back to it by the next call (a cache of keys and values) is no answer, and is left out.
"""

import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from copy import copy
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoal.arguments import names_of
from shoal.errors import DataError, NonFiniteError, UsageError

# The entries of transformers that hold state for the next call; objects that keep keys and values are known by method.
_STATE = frozenset({"past_key_values", "past_key_value", "cache_params", "past_buckets_states", "mems"})
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_DEEPEST = 32
# Values that are compared at a time.
_PIECE = 2**20


@dataclass(frozen=True, eq=False)
class Outputs:
    """What one call returned.

    Args:
        tensors: every tensor by name; a sparse or quantised one as it reads, a complex one as pairs of real numbers.
        plain: every number, string and None by name; an empty container counts as one.
    """

    tensors: dict[str, Tensor]
    plain: dict[str, Any]

    @property
    def floating(self) -> dict[str, Tensor]:
        """The tensors of real numbers."""
        return {name: tensor for name, tensor in self.tensors.items() if tensor.is_floating_point()}


def read_outputs(output: Any) -> Outputs:
    """Every tensor of what a network returned.

    Raises:
        DataError: something in it cannot be read; says where.
    """
    outputs = Outputs({}, {})
    for name, leaf in _leaves(output, "", 0):
        if isinstance(leaf, Tensor):
            outputs.tensors[name] = _readable(leaf)
        else:
            outputs.plain[name] = leaf
    return outputs


def as_names(output: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names of outputs that a user gave: none, one, or several.

    Raises:
        UsageError: something else.
    """
    return () if output is None else names_of("output", output)


def chosen_outputs(outputs: Outputs, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of these names, or inside these names, in the order they were returned; all where none is named.

    Raises:
        UsageError: there is no such tensor; lists those there are.
    """
    if not names:
        return outputs.tensors
    for name in names:
        if not any(_lies_in(tensor, name) for tensor in outputs.tensors):
            listed = ", ".join(map(shown, outputs.tensors)) or "no tensor"
            if name in outputs.plain:
                raise UsageError(f"the network's output '{name}' is {outputs.plain[name]!r}", f"Name {listed}.")
            raise UsageError(f"the network has no output '{name}': it returns {listed}", "Name one of these.")
    return {key: tensor for key, tensor in outputs.tensors.items() if any(_lies_in(key, name) for name in names)}


def named_outputs(output: Any, names: tuple[str, ...]) -> Any:
    """An output as it is passed to a user's function or a metric.

    The tensor where only one was named; several named ones by name; what the network returned where none is named.
    """
    if not names:
        return output
    tensors = chosen_outputs(read_outputs(output), names)
    return next(iter(tensors.values())) if len(tensors) == 1 else tensors


def _lies_in(name: str, container: str) -> bool:
    return name == container or name.startswith((f"{container}.", f"{container}["))


def shown(name: str) -> str:
    """The name for a message: one of its own for a network that returns a single tensor."""
    return f"'{name}'" if name else "the output"


def _leaves(item: Any, name: str, depth: int) -> Iterator[tuple[str, Any]]:
    if depth > _DEEPEST:
        raise DataError(f"{shown(name)} of the network is nested {depth} deep", "Does it hold itself?")
    if isinstance(item, np.ndarray) and item.dtype.kind in "biufc":
        item = torch.from_numpy(item)
    if isinstance(item, np.generic):
        item = item.item()
    if isinstance(item, (Tensor, *_PLAIN)):
        yield name, item
        return
    if _is_cache(item):
        return
    parts = _parts(item)
    if parts is None:
        raise DataError(
            f"{shown(name)} of the network is a {type(item).__name__}, in which no tensors can be found",
            "Wrap the network so that it returns tensors, alone or in tuples, lists, dicts or dataclasses.",
        )
    if not parts:
        yield name, type(item).__name__
    for key, part in parts.items():
        if key not in _STATE:
            yield from _leaves(part, _joined(name, key), depth + 1)


def _joined(name: str, key: Any) -> str:
    if isinstance(key, str) and key.isidentifier():
        return f"{name}.{key}" if name else key
    return f"{name}[{key!r}]"


def _parts(item: Any) -> Mapping[Any, Any] | None:
    """The parts of a container by key; None for what is none."""
    if isinstance(item, Mapping):
        return item
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        return dict(zip(item._fields, item, strict=True))
    if isinstance(item, (tuple, list)):
        return dict(enumerate(item))
    if isinstance(item, type) or callable(item):
        return None
    if is_dataclass(item):
        return {part.name: getattr(item, part.name, None) for part in fields(item)}
    held = getattr(item, "__dict__", None)
    if held and any(isinstance(part, Tensor) for part in held.values()):
        return {key: part for key, part in held.items() if not callable(part)}
    return None


def _is_cache(item: Any) -> bool:
    return hasattr(item, "get_seq_length") or type(item).__name__.endswith("Cache")


def _readable(tensor: Tensor) -> Tensor:
    if tensor.is_quantized:
        return tensor.dequantize()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def rebuilt(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with every tensor changed; what is no tensor stays."""
    if isinstance(output, Tensor):
        return change(output)
    if _is_cache(output):
        return output
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*(rebuilt(part, change) for part in output))
    if isinstance(output, (tuple, list)):
        return type(output)(rebuilt(part, change) for part in output)
    if isinstance(output, Mapping):
        parts = {key: part if key in _STATE else rebuilt(part, change) for key, part in output.items()}
        if is_dataclass(output):  # a ModelOutput
            return type(output)(**parts)
        if not isinstance(output, MutableMapping):
            return type(output)(parts)  # type: ignore[call-arg]
        changed = copy(output)  # a defaultdict, say, is not made of its pairs alone
        changed.update(parts)
        return changed
    if is_dataclass(output) and not isinstance(output, type):
        parts = {part.name: rebuilt(getattr(output, part.name), change) for part in fields(output) if part.init}
        return replace(output, **parts)
    return output


def check_numbers(tensors: Mapping[str, Tensor], who: str = "the model") -> None:
    """Refuse NaN and +Inf in what a network returned; -Inf is what masked scores are.

    Args:
        tensors: by name; those that are not of real numbers are passed over.
        who: named where there are several.

    Raises:
        NonFiniteError: with the name and the count.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or _is_below_infinity(tensor):
            continue
        bad = int((torch.isnan(tensor) | torch.isposinf(tensor)).sum())
        if bad:
            which = f" {shown(name)}" if name else ""
            raise NonFiniteError(
                f"{who}'s output{which} holds NaN or Inf: {bad} of {tensor.numel()} values",
                "Check the weights and the scale of the input; `shoal trace` names the first block where it happens.",
            )


def _is_below_infinity(tensor: Tensor) -> bool:
    """Whether no value is NaN or +Inf, by the largest, which is NaN where any is: ten times faster than a count."""
    return tensor.numel() > 0 and tensor.dtype.itemsize > 1 and float(tensor.detach().max()) < math.inf


def mismatch(left: Outputs, right: Outputs, *, rows: int | None = None) -> str | None:
    """Why the outputs of two networks cannot be laid side by side; None where they can.

    Args:
        left: of the one.
        right: of the other.
        rows: how many samples they were asked about: the first axis may then differ where it does not count these, as
            that of the boxes that a detector finds.
    """
    for name in dict.fromkeys((*left.tensors, *right.tensors, *left.plain, *right.plain)):
        first, second = left.tensors.get(name), right.tensors.get(name)
        if first is None or second is None:
            if (name in left.plain) and (name in right.plain) and first is second:
                continue
            return f"{shown(name)} is {_kind(left, name)} of one network and {_kind(right, name)} of the other"
        if first.dtype != second.dtype:
            return f"{shown(name)} is of the dtypes {first.dtype} and {second.dtype}"
        free = rows is not None and first.dim() == second.dim() > 0 and first.shape[0] != rows
        if first.shape[int(free) :] != second.shape[int(free) :]:
            return f"{shown(name)} is of shape {tuple(first.shape)} and {tuple(second.shape)}"
    return None


def _kind(outputs: Outputs, name: str) -> str:
    if name in outputs.tensors:
        return "a tensor"
    return repr(outputs.plain[name])[:40] if name in outputs.plain else "missing"


@dataclass(frozen=True)
class Distance:
    """How far one tensor of an output is from the same tensor of another network.

    `largest` is absolute, infinite where one is -Inf and the other is not, or where indices differ; `place` is where.
    """

    largest: float
    place: tuple[int, ...]
    bitwise: bool


def distance(left: Tensor, right: Tensor) -> Distance:
    """Of two tensors of the same shape and dtype; -Inf is equal to itself, and what is not floating is equal or not.

    In pieces: float64 copies of the logits of a large vocabulary take longer than the networks do. A piece is computed
    in float64 only where the largest difference may lie in it.
    """
    largest, at, bitwise = 0.0, 0, True
    pieces = zip(left.flatten().split(_PIECE), right.to(left.device).flatten().split(_PIECE), strict=True)
    for number, (expected, actual) in enumerate(pieces):
        if torch.equal(expected, actual):
            continue
        bitwise = False
        if largest < math.inf and _may_exceed(expected, actual, largest):
            off = _differences(expected, actual)
            if float(off.max()) > largest:
                largest, at = float(off.max()), number * _PIECE + int(off.argmax())
    place = torch.unravel_index(torch.tensor(at), left.shape) if left.dim() and left.numel() else ()
    return Distance(largest, tuple(map(int, place)), bitwise)


def _may_exceed(expected: Tensor, actual: Tensor, largest: float) -> bool:
    """Whether a difference may be above `largest`, by float32, whose rounding is far below the margin."""
    if expected.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return True
    top = float((expected.float() - actual.float()).abs().max())
    return not top < (1 - 1e-5) * largest  # NaN too


def _differences(expected: Tensor, actual: Tensor) -> Tensor:
    if not expected.is_floating_point():
        return torch.zeros(expected.shape, device=expected.device).masked_fill(expected != actual, torch.inf)
    wide = torch.float32 if expected.device.type == "mps" else torch.float64
    # Equal infinities first: their difference is no number.
    off = torch.where(expected == actual, 0.0, (expected.to(wide) - actual.to(wide)).abs())
    return off.nan_to_num(nan=torch.inf, posinf=torch.inf)
