"""Variants of an input: other values, another number of samples, other sizes. Each shows what one run cannot."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from shoal.batches import Batch


def other_values(batch: Batch) -> Batch:
    """Other numbers of the same kind: floats scaled and shifted, tokens in reverse order; masks stay."""

    def change(key: str, tensor: Tensor) -> Tensor:
        if "mask" in key or tensor.dtype == torch.bool or tensor.dim() == 0:
            return tensor
        if tensor.is_floating_point():
            return tensor.flip(0) * 1.7 + 0.3
        return tensor.flip((0, -1) if tensor.dim() > 1 else 0)

    return _map_tensors(batch, change)


def more_samples(batch: Batch) -> Batch:
    """The batch with its first sample repeated at the end."""
    size = batch.size

    def change(key: str, tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor[:1]]) if tensor.shape[:1] == (size,) else tensor

    return _map_tensors(batch, change)


def scaled(batch: Batch, factor: float) -> Batch:
    """The floating-point inputs times a factor."""
    return _map_tensors(batch, lambda key, tensor: tensor * factor if tensor.is_floating_point() else tensor)


def resized(batch: Batch) -> Iterator[list[Batch]]:
    """Groups of the same input in other sizes; of each group the first that the network accepts is enough.

    One group is larger, in steps that keep what a size can be divided by; one is smaller, and odd; one is a little
    larger, and leaves another rest when divided by 2 or 4. The axes of an image change by different amounts where the
    network allows it.
    """
    main = max(batch.tensors, key=Tensor.dim)
    if main.dim() < 4:
        for axis in range(1, main.dim()):
            for steps in _STEPS:
                yield [_resize_axes(batch, main, {axis: new}) for new in steps(main.shape[axis], 0)]
        return
    layouts = [range(2, main.dim()), range(1, main.dim() - 1)]  # channels first, channels last
    for steps in _STEPS:
        changes = [
            {axis: steps(main.shape[axis], place * uneven)[attempt] for place, axis in enumerate(axes)}
            for axes in layouts
            for attempt in range(2)
            for uneven in (1, 0)
        ]
        yield [_resize_axes(batch, main, change) for change in changes]


def _larger(length: int, place: int) -> tuple[int, int]:
    """Two larger lengths: by the largest power of two that divides it, up to 32; by one."""
    return length + min(length & -length, 32) * (place + 1), length + 1 + place


def _smaller(length: int, place: int) -> tuple[int, int]:
    """Two smaller lengths: less than half, and odd; one less."""
    return max(1, (length // 2 - 1) | 1) + 2 * place, max(1, length - 1 - place)


def _uneven(length: int, place: int) -> tuple[int, int]:
    """Three more; five more."""
    return length + 3 + 2 * place, length + 5 + 2 * place


_STEPS: tuple[Callable[[int, int], tuple[int, int]], ...] = (_larger, _smaller, _uneven)


def _resize_axes(batch: Batch, main: Tensor, lengths: dict[int, int]) -> Batch:
    """Resize axes of the main input by repeating or cutting; other inputs follow along axes of equal length."""
    by_length = {main.shape[axis]: length for axis, length in lengths.items()}

    def change(key: str, tensor: Tensor) -> Tensor:
        targets = lengths
        if tensor is not main:
            targets = {axis: by_length[old] for axis, old in enumerate(tensor.shape) if axis and old in by_length}
        for axis, length in targets.items():
            index = torch.arange(length, device=tensor.device) % tensor.shape[axis]
            tensor = tensor.index_select(axis, index)
        return tensor

    return _map_tensors(batch, change)


def _map_tensors(batch: Batch, change: Callable[[str, Tensor], Tensor]) -> Batch:
    def changed(key: str, value: Any) -> Any:
        return change(key, value) if isinstance(value, Tensor) else value

    kwargs = {key: changed(key, value) for key, value in batch.kwargs.items()}
    return replace(batch, args=tuple(changed("", value) for value in batch.args), kwargs=kwargs, target=None)
