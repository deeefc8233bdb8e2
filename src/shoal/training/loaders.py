"""An endless stream of mini-batches that can be resumed at any position: which epoch, and how far into it."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from shoal.batches import Batch, Repeatable, as_batch, batches, check_loader
from shoal.errors import DataError

LoaderFactory = Callable[[int], Iterable[Any]]
"""Returns the loader of an epoch, from 1."""
_PRIME = 1_000_003  # far above any number of mini-batches, so that seeds of epochs and mini-batches do not collide


def loader_factory(data: Iterable[Any] | LoaderFactory) -> LoaderFactory:
    """The loader of each epoch: by the function that was passed, or the same iterable each time.

    Raises:
        DataError: neither.
    """
    if not callable(data) or isinstance(data, (nn.Module, type)):
        check_loader(data)
    if callable(data):
        return data
    repeatable = Repeatable(data)
    return lambda epoch: repeatable


class ResumableLoader:
    """Mini-batches without an end.

    What a loader draws (order, augmentation) it draws from torch's random numbers, seeded before each mini-batch, so
    that an interrupted run resumes with the very same ones.

    Args:
        epochs: returns the loader of an epoch, from 1.
        seed: of what the loader draws.
        name: what the data is, for errors.
    """

    def __init__(self, epochs: LoaderFactory, seed: int, name: str = "training") -> None:
        self.epochs, self.seed, self.name = epochs, seed, name
        self.epoch, self.used = 0, 0
        self._items: Iterator[Any] = iter(())

    def next_batch(self) -> Batch:
        """The next mini-batch.

        Raises:
            DataError: an epoch without any.
        """
        item = self._next_item()
        if item is None:
            self._open(self.epoch + 1)
            item = self._next_item()
        if item is None:
            raise DataError(f"the {self.name} data is empty", "Give at least one mini-batch.")
        return next(batches([as_batch(item)]))

    def position(self) -> list[int]:
        """Epoch and mini-batches used of it, for `seek`."""
        return [self.epoch, self.used]

    def seek(self, position: list[int]) -> None:
        """Continue from a position; what was used of that epoch is read again and dropped."""
        epoch, used = position
        if epoch:
            self._open(epoch)
            for _ in range(used):
                self._next_item()

    def _open(self, epoch: int) -> None:
        self.epoch, self.used = epoch, 0
        torch.manual_seed(self.seed + _PRIME * epoch)
        self._items = iter(self.epochs(epoch))

    def _next_item(self) -> Any:
        torch.manual_seed(self.seed + _PRIME * self.epoch + self.used + 1)
        item = next(self._items, None)
        if item is not None:
            self.used += 1
        return item


class MixedLoader:
    """Training data, and unlabelled extra data in a share of the steps.

    Args:
        training: the loader of the data.
        unlabelled: another, or None.
        share: of the steps on the latter, spread evenly.
    """

    def __init__(self, training: ResumableLoader, unlabelled: ResumableLoader | None, share: float) -> None:
        self.training, self.unlabelled, self.share = training, unlabelled, share

    def next_batch(self, step: int) -> Batch:
        """The mini-batch of a step, from 0; that of extra data without its labels."""
        if self.unlabelled is None or int((step + 1) * self.share) == int(step * self.share):
            return self.training.next_batch()
        batch = self.unlabelled.next_batch()
        return Batch(batch.args, batch.kwargs)

    def position(self) -> list[list[int]]:
        """The positions of both loaders."""
        return [loader.position() for loader in self._loaders()]

    def seek(self, positions: list[list[int]]) -> None:
        """Continue from there."""
        for loader, position in zip(self._loaders(), positions, strict=True):
            loader.seek(position)

    def _loaders(self) -> list[ResumableLoader]:
        return [loader for loader in (self.training, self.unlabelled) if loader is not None]
