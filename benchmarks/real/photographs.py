"""Photographs of Debian's gnome-backgrounds and mate-backgrounds, and squares cut out of them."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from packages import package_file
from torch import Tensor

_LARGEST = 1200


@cache
def _photographs() -> list[Any]:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    folders = [package_file("data", f"{desktop}-backgrounds") for desktop in ("gnome", "mate")]
    files = sorted(path for folder in folders for ending in ("jpg", "webp") for path in folder.rglob(f"*.{ending}"))
    images = []
    for file in files:
        image = Image.open(file)
        image.draft("RGB", (_LARGEST, _LARGEST))
        image = image.convert("RGB")
        image.thumbnail((_LARGEST, _LARGEST))
        images.append(image)
    return images


def squares(part: str, count: int, size: int, seed: int, least: float = 0.3) -> Iterator[Any]:
    """Random squares as images of PIL; every fourth photograph is for `test`, the others for `train`.

    Args:
        part: 'train' or 'test'.
        count: how many.
        size: side in pixels that they are brought to.
        seed: of the choice.
        least: the smallest part of a photograph's shorter side that a square has.
    """
    from PIL import Image

    rng = np.random.default_rng(seed)
    images = [image for index, image in enumerate(_photographs()) if (index % 4 == 3) == (part == "test")]
    for number in range(count):
        image = images[number % len(images)]
        side = int(min(image.size) * rng.uniform(least, 1.0))
        left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
        square = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
        yield square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else square


def tensor_of(image: Any) -> Tensor:
    """(3, height, width) in 0..1."""
    return torch.from_numpy(np.asarray(image, np.float32).copy()).permute(2, 0, 1) / 255
