"""Calibration, validation and test: how samples are split, and the mini-batches they are read in.

They are always the same mini-batches, in the same order.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from shoal.errors import DataError
from shoal.sources.image_transform import AugmentationParams, ImageTransform


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


_EPOCH = 1_000_003  # a prime far above any seed a user types, so that seed and epoch do not collide


class Images(Protocol):
    """Stored samples that are read by index: in memory or from files."""

    def __len__(self) -> int: ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one stored sample."""

    def take(self, rows: Tensor) -> Tensor:
        """The samples at these indices, stacked: shape (len(rows), *shape)."""


@dataclass(frozen=True, eq=False)
class InMemory:
    """Samples held as one tensor, 8-bit or floating, shape (samples, ...)."""

    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one stored sample."""
        return tuple(self.values.shape[1:])

    def take(self, rows: Tensor) -> Tensor:
        """The samples at these indices."""
        return self.values[rows]


class Part(Protocol):
    """Calibration, validation or test: how many samples, and a loader over them."""

    @property
    def size(self) -> int | None:
        """How many samples; None where only reading them all would tell."""

    def loader(self, *, augment: bool = False, limit: int | None = None, epoch: int = 0) -> Iterable[Any]:
        """A re-iterable of mini-batches."""


@dataclass(frozen=True)
class NoPart:
    """A part that there is no sample for: nothing is wrong with that until somebody asks for it.

    Args:
        reason: why there is none.
        hint: what to do about it.
    """

    reason: str
    hint: str

    @property
    def size(self) -> int:
        """None at all."""
        return 0

    def loader(self, *, augment: bool = False, limit: int | None = None, epoch: int = 0) -> Iterable[Any]:
        """Refused, with the reason.

        Raises:
            DataError: always.
        """
        raise DataError(self.reason, self.hint)


NEEDS_MORE = "Give more samples; `compress --exact` needs none to judge on."


@dataclass(frozen=True, eq=False)
class ImagePart:
    """Some rows of stored samples.

    Args:
        images: the stored samples.
        labels: class indices of all of them, shape (len(images),), or None.
        rows: which of them belong to this part, in the order they are read.
        transform: how they become input.
        batch_size: samples in a mini-batch.
        seed: of the augmentation.
    """

    images: Images
    labels: Tensor | None
    rows: Tensor
    transform: ImageTransform
    batch_size: int
    seed: int

    @property
    def size(self) -> int:
        """How many samples."""
        return len(self.rows)

    def loader(self, *, augment: bool = False, limit: int | None = None, epoch: int = 0) -> "Loader":
        """Mini-batches of `(x, y)`, or of `x` where there are no labels.

        Args:
            augment: shift and flip as the source allows; the same way each time the loader is read.
            limit: at most this many samples.
            epoch: 0 keeps the order; any other draws another order and other shifts, for training.
        """
        rows = self.rows[:limit]
        seed = self.seed + _EPOCH * epoch
        if epoch:
            rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
        draw = self.transform.draw(len(rows), self.images.shape, seed) if augment else None
        return Loader(self, rows, draw)


def why_none_held(count: int) -> str:
    """Why a split held no sample of `count` back."""
    if count < 2:
        return f"train holds {count} sample{'' if count == 1 else 's'}, too few to keep some for validation"
    return f"each class of the {count} samples of train has only one, so that none could be kept for validation"


@dataclass(frozen=True, eq=False)
class Loader:
    """A re-iterable of mini-batches of one part."""

    part: ImagePart
    rows: Tensor
    draw: AugmentationParams | None

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.part.batch_size)

    def __iter__(self) -> Iterator[Any]:
        part = self.part
        for start in range(0, len(self.rows), part.batch_size):
            here = slice(start, start + part.batch_size)
            rows = self.rows[here]
            x = part.transform(part.images.take(rows), self.draw[here] if self.draw is not None else None)
            yield x if part.labels is None else (x, part.labels[rows])


@dataclass(frozen=True, eq=False)
class Source:
    """Train and test samples as they are stored, and how they become input.

    Args:
        train: stored samples.
        test: stored samples that nothing but the final record reads.
        train_labels: class indices, shape (len(train),), or None.
        test_labels: likewise for test.
        transform: scale, usual mean and standard deviation, and which augmentation keeps the class.
        split_seed: fixes the validation part whatever seed the user gives; None leaves it to the user.
    """

    train: Images
    test: Images
    train_labels: Tensor | None
    test_labels: Tensor | None
    transform: ImageTransform
    split_seed: int | None = None
