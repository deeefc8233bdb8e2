"""Nested arguments and results with tensors replaced by references to traced values.

A template is what a call looked like: the same tuples, lists, dicts and numbers, with a `TensorRef` where a tensor
stood and an `Opaque` where something stood that cannot be written down.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

_NUMBERS = (bool, int, float, complex, str, bytes, type(None))
_PLAIN = (*_NUMBERS, type(Ellipsis), torch.dtype, torch.device, torch.memory_format, torch.layout)


@dataclass(frozen=True)
class TensorRef:
    """Stands for a tensor: the index of its value in the trace."""

    value: int


@dataclass(frozen=True)
class Opaque:
    """Stands for something that is no tensor, number or plain container."""

    kind: str


@dataclass(frozen=True)
class Size:
    """Stands for a number that follows sizes: `(times * shape[axes] + plus) // over`, several axes multiplied."""

    value: int
    axes: tuple[int, ...]
    times: int = 1
    plus: int = 0
    over: int = 1

    def of(self, tensor: Tensor) -> int:
        """The number, for a tensor that stands where `value` stood."""
        product = 1
        for axis in self.axes:
            product *= tensor.shape[axis]
        return self.of_product(product)

    def of_product(self, product: int) -> int:
        """The number, for this product of sizes."""
        return (self.times * product + self.plus) // self.over


_LEAVES = frozenset([*_NUMBERS, TensorRef, Opaque, Size])


def template(item: Any, refer: Callable[[Tensor], TensorRef]) -> Any:
    """The template of `item`, asking `refer` for the number of each tensor."""
    if isinstance(item, Tensor):
        return refer(item)
    if type(item) in _NUMBERS or isinstance(item, _PLAIN):
        return item
    if isinstance(item, slice):
        return slice(*(template(part, refer) for part in (item.start, item.stop, item.step)))
    if isinstance(item, Mapping):
        return {key: template(value, refer) for key, value in item.items()}
    if isinstance(item, tuple):
        return tuple(template(part, refer) for part in item)
    if isinstance(item, list):
        return [template(part, refer) for part in item]
    if is_dataclass(item) and not isinstance(item, type):
        return {entry.name: template(getattr(item, entry.name, None), refer) for entry in fields(item)}
    if callable(item):
        return item
    return Opaque(type(item).__name__)


def leaves(item: Any) -> Iterator[Any]:
    """Everything in a template that is no container, in order."""
    if type(item) in _LEAVES:  # nearly all of them: to ask for abstract classes is slow
        yield item
    elif isinstance(item, (tuple, list)):
        for value in item:
            yield from leaves(value)
    elif isinstance(item, Mapping):
        for value in item.values():
            yield from leaves(value)
    elif isinstance(item, slice):
        yield from leaves((item.start, item.stop, item.step))
    else:
        yield item


def tensor_refs(item: Any) -> list[int]:
    """The values a template refers to, in order, repeated where it repeats them."""
    return [leaf.value for leaf in leaves(item) if isinstance(leaf, TensorRef)]


def substitute(item: Any, values: Mapping[int, Any]) -> Any:
    """The template with every reference replaced by what `values` holds for it, and every size by its number."""

    def change(leaf: Any) -> Any:
        if isinstance(leaf, TensorRef):
            return values[leaf.value]
        if isinstance(leaf, Size) and isinstance(values.get(leaf.value), Tensor):
            return leaf.of(values[leaf.value])
        return leaf

    return rebuilt(item, change)


def rebuilt(item: Any, change: Callable[[Any], Any]) -> Any:
    """The same containers with every leaf changed, in the order of `leaves`."""
    if isinstance(item, Mapping):
        return {key: rebuilt(value, change) for key, value in item.items()}
    if isinstance(item, tuple):
        return tuple(rebuilt(value, change) for value in item)
    if isinstance(item, list):
        return [rebuilt(value, change) for value in item]
    if isinstance(item, slice):
        return slice(rebuilt(item.start, change), rebuilt(item.stop, change), rebuilt(item.step, change))
    return change(item)
