"""Weights where torch itself would allocate them: elsewhere some kernels take another path and round differently.

Tensors that a file is mapped to (safetensors, `from_pretrained`) begin wherever the file's header ends. The same
network, loaded and built, would then differ in the last bit and in its latency.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

ALIGNMENT = 64  # bytes: what torch's own CPU allocator keeps to


def is_aligned(tensor: Tensor) -> bool:
    """Whether a tensor begins where torch's allocator would have it; true of what is not plain memory of the CPU."""
    return not _is_plain(tensor) or tensor.data_ptr() % ALIGNMENT == 0


def aligned(tensor: Tensor) -> Tensor:
    """The tensor itself if torch allocated its memory and it is aligned; otherwise a copy."""
    return tensor if _is_fine(tensor) else tensor.clone()


def align_(model: nn.Module) -> nn.Module:
    """Move parameters and buffers that lie elsewhere into memory that torch allocates, one after another.

    Parameters stay the same objects, and tensors that share memory go on sharing it. What is on another device, on a
    disk (`meta`), or of a kind of its own (quantised, sparse) is left alone.
    """
    for group in _misplaced(model):
        _move_(group)
    return model


@contextmanager
def in_aligned_memory(model: nn.Module) -> Iterator[nn.Module]:
    """The model as `align_` leaves it, until the block ends; then its tensors are where they were."""
    before = [(tensor, tensor.data) for group in _misplaced(model) for tensor in group]
    try:
        yield align_(model)
    finally:
        for tensor, data in before:
            tensor.data = data


def _is_plain(tensor: Tensor) -> bool:
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg() or tensor.is_inference())
        and tensor.numel() > 0
    )


def _is_fine(tensor: Tensor) -> bool:
    # A storage that cannot grow is memory of somebody else's: a mapped file, for one.
    return not _is_plain(tensor) or (tensor.data_ptr() % ALIGNMENT == 0 and tensor.untyped_storage().resizable())


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The first byte of a tensor and the one behind its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _misplaced(model: nn.Module) -> list[list[Tensor]]:
    """The tensors to move, in groups that share memory."""
    tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if _is_plain(tensor)]
    return [group for group in _overlapping(tensors) if not all(map(_is_fine, group)) and _is_movable(group)]


def _overlapping(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    groups: list[list[Tensor]] = []
    end = 0
    for tensor in sorted(tensors, key=_extent):
        first, behind = _extent(tensor)
        if groups and first < end:
            groups[-1].append(tensor)
        else:
            groups.append([tensor])
        end = max(end, behind)
    return groups


def _is_movable(group: list[Tensor]) -> bool:
    """Whether the tensors are views of one storage that all can begin where they begin now, counted from the first."""
    first = _extent(group[0])[0]
    whole = all((_extent(tensor)[0] - first) % tensor.element_size() == 0 for tensor in group)
    return whole and len({tensor.untyped_storage().data_ptr() for tensor in group}) == 1


def _move_(group: list[Tensor]) -> None:
    """All tensors of a group into one new piece of memory, byte by byte, each as far behind its beginning as before."""
    first, behind = _extent(group[0])[0], max(_extent(tensor)[1] for tensor in group)
    source = group[0].untyped_storage()
    mapped = torch.empty(0, dtype=torch.uint8).set_(source, first - source.data_ptr(), (behind - first,), (1,))
    storage = mapped.clone().untyped_storage()
    for tensor in group:
        offset = (_extent(tensor)[0] - first) // tensor.element_size()
        twin = torch.empty(0, dtype=tensor.dtype)
        tensor.data = twin.set_(storage, offset, tensor.shape, tensor.stride())
