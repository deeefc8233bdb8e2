"""An endless stream of mini-batches that can be taken up again at any place: epoch after epoch, and how far in."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from shoal.batches import Batch, Repeatable, as_batch, batches
from shoal.errors import DataError

LoaderFactory = Callable[[int], Iterable[Any]]
_PRIME = 1_000_003  # far above any number of mini-batches, so that epoch and mini-batch do not collide


def loader_factory(given: Iterable[Any] | LoaderFactory) -> LoaderFactory:
    """A function that gives the loader of an epoch, from 1, whatever was given: that, or a loader to read anew."""
    if callable(given):
        return given
    again = Repeatable(given)
    return lambda epoch: again


class ResumableLoader:
    """Mini-batches without an end.

    What a loader draws (order, augmentation) it draws from torch's random numbers, seeded before each mini-batch, so
    that a run which was interrupted goes on with the very same ones.

    Args:
        epochs: gives the loader of an epoch, from 1.
        seed: of what the loader draws.
        name: what the data is, for errors.
    """

    def __init__(self, epochs: LoaderFactory, seed: int, name: str = "training") -> None:
        self.epochs, self.seed, self.name = epochs, seed, name
        self.epoch, self.used = 0, 0
        self._items: Iterator[Any] = iter(())

    def take(self) -> Batch:
        """The next mini-batch.

        Raises:
            DataError: an epoch without any.
        """
        item = self._next()
        if item is None:
            self._open(self.epoch + 1)
            item = self._next()
        if item is None:
            raise DataError(f"the {self.name} data is empty", "Give at least one mini-batch.")
        return next(batches([as_batch(item)]))

    def place(self) -> list[int]:
        """Where it is, for `go_to`."""
        return [self.epoch, self.used]

    def go_to(self, place: list[int]) -> None:
        """Go on from a place; what was used of that epoch is read again and thrown away."""
        epoch, used = place
        if epoch:
            self._open(epoch)
            for _ in range(used):
                self._next()

    def _open(self, epoch: int) -> None:
        self.epoch, self.used = epoch, 0
        torch.manual_seed(self.seed + _PRIME * epoch)
        self._items = iter(self.epochs(epoch))

    def _next(self) -> Any:
        torch.manual_seed(self.seed + _PRIME * self.epoch + self.used + 1)
        item = next(self._items, None)
        if item is not None:
            self.used += 1
        return item


class MixedLoader:
    """What a run learns from: training data, and unlabelled extra data in a share of the steps.

    Args:
        training: the stream of the data.
        unlabelled: another one, or None.
        share: of the steps on the latter, spread evenly.
    """

    def __init__(self, training: ResumableLoader, unlabelled: ResumableLoader | None, share: float) -> None:
        self.training, self.unlabelled, self.share = training, unlabelled, share

    def take(self, step: int) -> Batch:
        """The mini-batch of a step, from 0; that of extra data without labels, whatever the loader gave."""
        if self.unlabelled is None or int((step + 1) * self.share) == int(step * self.share):
            return self.training.take()
        batch = self.unlabelled.take()
        return Batch(batch.args, batch.kwargs)

    def place(self) -> list[list[int]]:
        """Where both streams are."""
        return [one.place() for one in (self.training, self.unlabelled) if one is not None]

    def go_to(self, places: list[list[int]]) -> None:
        """Go on from there."""
        streams = [one for one in (self.training, self.unlabelled) if one is not None]
        for stream, place in zip(streams, places, strict=True):
            stream.go_to(place)
