"""Training samples by epoch: another order and other random changes each time, the same for the same seed and epoch."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.batches import Batch, batches
from shoal.errors import DataError
from shoal.sources import Data
from shoal.sources.image_sets import ImageFiles
from shoal.sources.image_transform import ImageTransform
from shoal.sources.parts import ImagePart, Images, InMemory

_EPOCH = 1_000_003  # as in sources.parts: a prime far above any seed, so that seed and epoch do not collide


@dataclass(frozen=True)
class Augmentation:
    """What may be done to an image without changing its class.

    Args:
        pad: zeros added on every side before an image of the old size is cut out at random.
        flip: mirror left and right, every second time.
        brightness: the largest offset added to all pixels of an image, in units of the full scale.
        contrast: factors on the distance from the image's own mean per channel, or None.
        zoom: cut out a random part of this area (a share) and scale it to `size`, or None.
        size: height and width of the result in pixels; only with `zoom`.
    """

    pad: int = 0
    flip: bool = False
    brightness: float = 0.0
    contrast: tuple[float, float] | None = None
    zoom: tuple[float, float] | None = None
    size: int | None = None

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Changed images (batch, channels, height, width), floating, 0..1; `generator` lives on their device."""
        if images.dim() != 4:
            return images
        if self.zoom is not None:
            images = _zoomed(images, self.zoom, self.size or images.shape[-1], generator)
        if self.pad:
            images = _cropped(images, self.pad, generator)
        if self.flip:
            mirrored = _draw(images, generator) < 0.5
            images = torch.where(mirrored, images.flip(-1), images)
        if self.brightness:
            images = images + (2 * _draw(images, generator) - 1) * self.brightness
        if self.contrast is not None:
            low, high = self.contrast
            mean = images.mean(dim=(2, 3), keepdim=True)
            images = mean + (images - mean) * (low + (high - low) * _draw(images, generator))
        return images


def _draw(images: Tensor, generator: torch.Generator) -> Tensor:
    """One number in 0..1 for each image, ready to be multiplied with it."""
    return torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device)


def _cropped(images: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    device = images.device
    corner = torch.randint(0, 2 * pad + 1, (count, 2), generator=generator, device=device)
    rows = corner[:, :1] + torch.arange(height, device=device)
    columns = corner[:, 1:] + torch.arange(width, device=device)
    padded = F.pad(images, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
    sample = torch.arange(count, device=device).view(-1, 1, 1)
    return padded[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _zoomed(images: Tensor, area: tuple[float, float], size: int, generator: torch.Generator) -> Tensor:
    """A random part of each image, of random proportions between 3:4 and 4:3, scaled to (size, size)."""
    count = len(images)
    u = torch.rand(count, 4, generator=generator, device=images.device)
    share = area[0] + (area[1] - area[0]) * u[:, 0]
    ratio = torch.exp((2 * u[:, 1] - 1) * 0.28768207)  # log(4/3)
    width, height = (share * ratio).sqrt().clamp(max=1), (share / ratio).sqrt().clamp(max=1)
    theta = torch.zeros(count, 2, 3, device=images.device)
    theta[:, 0, 0], theta[:, 1, 1] = width, height
    theta[:, 0, 2], theta[:, 1, 2] = (2 * u[:, 2] - 1) * (1 - width), (2 * u[:, 3] - 1) * (1 - height)
    grid = F.affine_grid(theta, [count, images.shape[1], size, size], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


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
        self.images, self.look, self.rows, self.seed, self.device = part.images, part.transform, rows, seed, device
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
