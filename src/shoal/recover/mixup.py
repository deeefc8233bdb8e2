"""Mixup: some samples of a mini-batch are mixed with another, which no network has seen and every teacher can label.

A teacher knows its training images by heart, and tells little about them but their class; of a mixture it tells more.
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

    def apply(self, values: Tensor) -> Tensor:
        """The mixture of values by sample, (samples, ...)."""
        weight = self.weight.to(values).view(-1, *(1 for _ in values.shape[1:]))
        return weight * values + (1 - weight) * values[self.partner]


def can_mix(batch: Batch) -> bool:
    """Whether the inputs can be mixed: all of them floats by sample. Tokens cannot."""
    size = batch.size
    return size > 1 and all(
        tensor.is_floating_point() and tensor.dim() > 1 and tensor.shape[0] == size for tensor in batch.tensors
    )


def mixup(batch: Batch, share: float, generator: torch.Generator) -> tuple[Batch, Mixup | None]:
    """Mix a share of the samples, each with a weight of its own, uniform from 0 to 1.

    Args:
        batch: on any device; left as it is where its inputs cannot be mixed.
        share: of the samples, 0..1.
        generator: on the CPU, so that every device draws the same.

    Returns:
        The mini-batch, with the target as it was, and the mixture (None: nothing was mixed).
    """
    if share == 0 or not can_mix(batch):
        return batch, None
    device = batch.tensors[0].device
    weight, chosen = torch.rand(2, batch.size, generator=generator)
    weight = torch.where(chosen < share, weight, torch.ones(()))
    mixture = Mixup(weight.to(device), torch.randperm(batch.size, generator=generator).to(device))
    return _mixed(batch, mixture), mixture


def pairwise_mixup(batch: Batch) -> Batch | None:
    """Every sample mixed half and half with the next, without labels; None where that cannot be done.

    The target has the shape of the labels, if there are several a sample: see `mixup_shape`.
    """
    if not can_mix(batch):
        return None
    device = batch.tensors[0].device
    partner = torch.arange(batch.size, device=device).roll(1)
    mixed = _mixed(batch, Mixup(torch.full((batch.size,), 0.5, device=device), partner))
    return Batch(mixed.args, mixed.kwargs, mixup_shape(batch.target))


def mixup_shape(target: Tensor | None) -> Tensor | None:
    """No labels, in the shape of some: nothing but -100, which no loss and no metric reads as a class.

    The shape says which axis of the answers holds the classes. One label a sample says nothing about it: None.
    """
    return torch.full_like(target, IGNORED) if target is not None and target.dim() > 1 else None


def _mixed(batch: Batch, mixture: Mixup) -> Batch:
    def mixed(value: Any) -> Any:
        return mixture.apply(value) if isinstance(value, Tensor) else value

    kwargs = {key: mixed(value) for key, value in batch.kwargs.items()}
    return Batch(tuple(mixed(value) for value in batch.args), kwargs, batch.target)
