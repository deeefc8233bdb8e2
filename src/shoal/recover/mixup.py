"""Mini-batches in which some samples are blended with another: what no network has seen, and every teacher can answer.

A teacher knows its training images by heart, and says little about them but their class; about a blend it says more.
Source: Zhang et al. 2018, arXiv:1710.09412; with a teacher instead of labels: Beyer et al. 2022, arXiv:2106.05237.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shoal.batches import IGNORED, Batch


@dataclass(frozen=True, eq=False)
class Mixup:
    """Sample i is `weight[i]` of itself and the rest of sample `partner[i]`."""

    weight: Tensor
    partner: Tensor

    def of(self, values: Tensor) -> Tensor:
        """The blend of values by sample, (samples, ...)."""
        weight = self.weight.to(values).view(-1, *(1 for _ in values.shape[1:]))
        return weight * values + (1 - weight) * values[self.partner]


def can_mix(batch: Batch) -> bool:
    """Whether the inputs can be blended: all of them numbers by sample. Tokens cannot."""
    size = batch.size
    return size > 1 and all(one.is_floating_point() and one.dim() > 1 and one.shape[0] == size for one in batch.tensors)


def mixup(batch: Batch, share: float, generator: torch.Generator) -> tuple[Batch, Mixup | None]:
    """Blend a share of the samples, each by a weight of its own, evenly from 0 to 1.

    Args:
        batch: on any device; nothing is changed where its inputs cannot be blended.
        share: how many of the samples, 0..1.
        generator: on the CPU, so that every device draws the same.

    Returns:
        The mini-batch, with the target as it was, and what was blended (None: nothing).
    """
    if share == 0 or not can_mix(batch):
        return batch, None
    device = batch.tensors[0].device
    weight, chosen = torch.rand(2, batch.size, generator=generator)
    weight = torch.where(chosen < share, weight, torch.ones(()))
    blend = Mixup(weight.to(device), torch.randperm(batch.size, generator=generator).to(device))
    return _with(batch, blend), blend


def pairwise_mixup(batch: Batch) -> Batch | None:
    """Every sample blended half and half with the next, without labels; None where that cannot be done.

    The target has the shape of the labels, if there are several a sample: see `shape_of`.
    """
    if not can_mix(batch):
        return None
    device = batch.tensors[0].device
    partner = torch.arange(batch.size, device=device).roll(1)
    mixed = _with(batch, Mixup(torch.full((batch.size,), 0.5, device=device), partner))
    return Batch(mixed.args, mixed.kwargs, mixup_shape(batch.target))


def mixup_shape(target: Tensor | None) -> Tensor | None:
    """No labels, in the shape of some: nothing but -100, which no loss and no metric reads as a class.

    The shape says which axis of the answers holds the classes. One label a sample says nothing about it: None.
    """
    return torch.full_like(target, IGNORED) if target is not None and target.dim() > 1 else None


def _with(batch: Batch, blend: Mixup) -> Batch:
    def mixed(value: Any) -> Any:
        return blend.of(value) if isinstance(value, Tensor) else value

    kwargs = {key: mixed(value) for key, value in batch.kwargs.items()}
    return Batch(tuple(mixed(value) for value in batch.args), kwargs, batch.target)
