"""From stored pixels to what a network sees: shift, flip, scale, resize, normalise, one batch at a time."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class AugmentationParams:
    """The random choices for some images, drawn before they are read, so that batch size changes nothing.

    Args:
        shift: whole pixels down and right, shape (images, 2), int64.
        flip: whether to mirror left and right, shape (images,), bool.
    """

    shift: Tensor
    flip: Tensor

    def __getitem__(self, rows: slice) -> "AugmentationParams":
        return AugmentationParams(self.shift[rows], self.flip[rows])


@dataclass(frozen=True)
class ImageTransform:
    """How stored samples are turned into input.

    Args:
        scale: factor on stored integers (1/255 for 8-bit pixels); floats are left as they are.
        mean: per channel, of values after scaling; None leaves them.
        std: per channel, likewise.
        size: height and width in pixels that images are resized to; None leaves them.
        shifts: augment by shifts of up to an eighth of the image.
        flips: augment by mirroring left and right.
    """

    scale: float = 1 / 255
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None
    shifts: bool = False
    flips: bool = False

    def __call__(self, stored: Tensor, draw: AugmentationParams | None = None) -> Tensor:
        """Float32 input for one mini-batch, augmented where `draw` is given."""
        if draw is not None:
            stored = augmented(stored, draw)
        x = stored.float() if stored.is_floating_point() else stored.float() * self.scale
        if self.size is not None and x.dim() == 4 and x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True)
        if self.mean is not None:
            x = x - _per_channel(self.mean, x)
        if self.std is not None:
            x = x / _per_channel(self.std, x)
        return x

    def draw(self, count: int, image: tuple[int, ...], seed: int) -> AugmentationParams | None:
        """The seeded choices for `count` images of shape `image`; None where nothing is to be augmented."""
        if len(image) != 3 or not (self.shifts or self.flips):
            return None
        generator = torch.Generator().manual_seed(seed)
        reach = min(image[1:]) // 8 if self.shifts else 0
        shift = torch.randint(-reach, reach + 1, (count, 2), generator=generator)
        flip = torch.rand(count, generator=generator) < (0.5 if self.flips else 0.0)
        return AugmentationParams(shift, flip)


def augmented(images: Tensor, draw: AugmentationParams) -> Tensor:
    """Images (batch, channels, height, width) mirrored and shifted as drawn, filled with zero from outside.

    Zero is black in stored pixels: the background of digits and the usual padding of small photographs.
    """
    batch, channels, height, width = images.shape
    images = torch.where(draw.flip.view(-1, 1, 1, 1), images.flip(-1), images)
    reach = int(draw.shift.abs().max()) if len(draw.shift) else 0
    if reach == 0:
        return images
    padded = F.pad(images, (reach, reach, reach, reach))
    rows = torch.arange(height) + reach - draw.shift[:, :1]
    columns = torch.arange(width) + reach - draw.shift[:, 1:]
    sample = torch.arange(batch).view(-1, 1, 1, 1)
    channel = torch.arange(channels).view(1, -1, 1, 1)
    return padded[sample, channel, rows.view(batch, 1, height, 1), columns.view(batch, 1, 1, width)]


def _per_channel(values: tuple[float, ...], x: Tensor) -> Tensor:
    return torch.tensor(values, dtype=x.dtype).view(-1, *(1 for _ in x.shape[2:]))
