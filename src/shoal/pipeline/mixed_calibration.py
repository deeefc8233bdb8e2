"""Mini-batches on which a network is not sure: blends of pairs of images.

A network knows its training images by heart, augmented or not: its answers there hardly move whatever is done to it, so
damage measured on them says little. On a blend of two images it has to weigh, and its answers move with every change.

Source: mixing as in Zhang et al. 2018, arXiv:1710.09412; here without labels, the original network is the reference.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from shoal.batches import Batch
from shoal.recover.mixup import mixup_shape


def with_mixup(batches: Sequence[Batch], share: float = 0.5) -> list[Batch]:
    """The mini-batches, and behind each a blend of every sample with its neighbour; without labels.

    The targets keep the shape of labels at most, which tells the axis of the classes: see `shape_of`. Inputs that are
    no floating-point numbers (tokens) cannot be blended: such mini-batches come back alone.
    """
    found = []
    for batch in batches:
        shape = mixup_shape(batch.target)
        found.append(Batch(batch.args, batch.kwargs, shape))
        if batch.size > 1 and all(one.is_floating_point() for one in batch.tensors):
            kwargs = {key: _blend(value, share) for key, value in batch.kwargs.items()}
            found.append(Batch(tuple(_blend(value, share) for value in batch.args), kwargs, shape))
    return found


def _blend(value: Any, share: float) -> Any:
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    return share * value + (1 - share) * value.roll(1, 0)
