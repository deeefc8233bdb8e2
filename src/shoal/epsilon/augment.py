"""Random changes of training images, one mini-batch at a time, on the device where the network is."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


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
