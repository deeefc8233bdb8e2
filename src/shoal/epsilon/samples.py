"""Training samples by epoch: another order and other random changes each time, the same for the same seed and epoch."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from shoal.batches import Batch, batches
from shoal.epsilon.augment import Augmentation
from shoal.errors import DataError
from shoal.sources import Data
from shoal.sources.image_sets import ImageFiles
from shoal.sources.image_transform import ImageTransform
from shoal.sources.parts import ImagePart, Images, InMemory

_EPOCH = 1_000_003  # as in sources.parts: a prime far above any seed, so that seed and epoch do not collide


class Samples(Protocol):
    """Where the run takes its mini-batches from."""

    @property
    def size(self) -> int | None:
        """How many samples; None where nobody knows."""

    def epoch(self, number: int) -> Iterator[Batch]:
        """The mini-batches of one epoch, from 0."""


def training_samples(
    data: Data,
    augmentation: Augmentation,
    batch_size: int,
    seed: int,
    device: torch.device,
    share: tuple[int, int] = (0, 1),
) -> Samples:
    """All training samples of `data`, the validation part included: nothing is chosen on it here.

    Args:
        data: as `load_data` returns it.
        augmentation: of images; data that comes as the user's own loader is left as it is.
        batch_size: samples in a mini-batch of this process.
        seed: of order and augmentation.
        device: where the mini-batches go.
        share: the number of this process and how many there are; each takes its share of every epoch.
    """
    calibration, validation = data.parts[0], data.parts[1]
    if not (isinstance(calibration, ImagePart) and isinstance(validation, ImagePart)):
        return OwnSamples(data, device)
    if calibration.labels is None:
        raise DataError(f"'{data.spec}' has no labels, training needs them", "Give data with labels.")
    rows = torch.cat([calibration.rows, validation.rows])
    return StoredSamples(calibration, rows, augmentation, batch_size, seed, device, share)


class StoredSamples:
    """Stored samples: those in memory are moved to the device once, image files are read one mini-batch ahead."""

    def __init__(
        self,
        part: ImagePart,
        rows: Tensor,
        augmentation: Augmentation,
        batch_size: int,
        seed: int,
        device: torch.device,
        share: tuple[int, int],
    ) -> None:
        self.images, self.look, self.rows, self.seed, self.device = part.images, part.look, rows, seed, device
        self.augmentation, self.batch_size, self.share = augmentation, batch_size, share
        self.labels = part.labels.to(device) if part.labels is not None else torch.empty(0)
        self.resident: Tensor | None = None
        if isinstance(self.images, InMemory):
            self.resident = self.images.values.to(device)
        else:
            self.images = _larger(self.images, augmentation)

    @property
    def size(self) -> int:
        """How many samples."""
        return len(self.rows)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The mini-batches of one epoch; an incomplete last one is left out, as long as there is a whole one."""
        seed = self.seed + _EPOCH * (number + 1)
        order = self.rows[torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(seed))]
        rank, processes = self.share
        order = order[rank::processes][: len(order) // processes]
        generator = torch.Generator(self.device).manual_seed(seed + rank)
        parts = [part for part in order.split(self.batch_size) if len(part) == self.batch_size] or [order]
        for rows, stored in self._stored(parts):
            pixels = stored if stored.is_floating_point() else stored.float() * self.look.scale
            yield Batch((normalised(self.augmentation(pixels, generator), self.look),), {}, self.labels[rows])

    def _stored(self, parts: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        if self.resident is not None:
            for rows in parts:
                there = rows.to(self.device)
                yield there, self.resident[there]
            return
        with ThreadPoolExecutor(1) as ahead:
            waiting = ahead.submit(self.images.take, parts[0])
            for number, rows in enumerate(parts):
                stored = waiting.result()
                if number + 1 < len(parts):
                    waiting = ahead.submit(self.images.take, parts[number + 1])
                yield rows.to(self.device), stored.to(self.device)


class OwnSamples:
    """What the user's own function returned: their loaders, their augmentation."""

    def __init__(self, data: Data, device: torch.device) -> None:
        self.data, self.device = data, device

    @property
    def size(self) -> int | None:
        """How many samples."""
        return self.data.parts[0].size

    def epoch(self, number: int) -> Iterator[Batch]:
        """The mini-batches of the calibration part."""
        for batch in batches(self.data.calibration(augment=True, epoch=number + 1), self.device):
            if batch.target is None:
                raise DataError(f"'{self.data.spec}' has no labels, training needs them", "Give data with labels.")
            if batch.size > 1:  # batch norm cannot train on a single sample
                yield batch


def normalised(pixels: Tensor, look: ImageTransform) -> Tensor:
    """Pixels as the look has them, on their own device; sizes are left alone."""
    for values, apply in ((look.mean, torch.sub), (look.std, torch.div)):
        if values is not None:
            shaped = torch.tensor(values, dtype=pixels.dtype, device=pixels.device)
            pixels = apply(pixels, shaped.view(-1, *(1 for _ in pixels.shape[2:])))
    return pixels


def _larger(images: Images, augmentation: Augmentation) -> Any:
    """Image files decoded an eighth larger than the network sees them, so that parts can be cut out."""
    if isinstance(images, ImageFiles) and augmentation.zoom is not None and augmentation.size is not None:
        return replace(images, size=round(augmentation.size * 8 / 7))
    return images
