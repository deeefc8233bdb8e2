"""Seeded splits: which samples are held out."""

import torch
from torch import Tensor


def hold_out(count: int, fraction: float, seed: int, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Split `count` samples into (kept, held out), each class in the same proportion where labels are known.

    Args:
        count: how many samples there are.
        fraction: the part that is held out, above 0 and below 1.
        seed: the same seed gives the same split on every machine.
        labels: class indices, shape (count,), or None.

    Returns:
        Two index tensors (int64) in seeded random order, so that the first k of either are a fair sample;
        together they hold every index once.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator)
    if labels is None:
        cut = _held(count, fraction)
        return order[cut:], order[:cut]
    held = torch.zeros(count, dtype=torch.bool)
    for label in labels.unique():
        members = order[labels[order] == label]
        held[members[: _held(len(members), fraction)]] = True
    return order[~held[order]], order[held[order]]


def random_subset(count: int, limit: int | None, seed: int) -> Tensor:
    """Indices of at most `limit` of `count` samples, in order.

    They are chosen at random: data is often sorted by class, and the first samples would be of one class.
    """
    if limit is None or limit >= count:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:limit].sort().values


def _held(count: int, fraction: float) -> int:
    # A class of one sample stays in train: a network cannot be judged on what it never saw.
    return min(count - 1, max(1, round(count * fraction))) if count > 1 else 0
