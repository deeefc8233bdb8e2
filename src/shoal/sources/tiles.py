"""Images larger than what a network takes, cut into tiles with their targets: tiles:SIDE:pairs:ROOT.

Tiles cover every pixel of an image; those at its right and lower edge overlap their neighbours rather than be padded,
and with tiles:SIDE:OVERLAP:pairs:ROOT all do. All tiles of an image are on the same side of the split into calibration
and validation, and the metrics of a task see the image that they are blended to.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from shoal.batches import Batch, TilePlace
from shoal.errors import DataError, SpecError
from shoal.files.reading import from_home
from shoal.sources.image_targets import (
    Sample,
    Targeted,
    TargetSource,
    pair_folder,
    pixels_of,
    segmentation_folder,
)
from shoal.sources.image_transform import ImageTransform

FORM = "tiles:SIDE:pairs:ROOT"
_FOLDERS = {"pairs": pair_folder, "segmentation": segmentation_folder}


def tiled_folder(place: Path, size: int | None = None) -> TargetSource:
    """SIDE:pairs:ROOT or SIDE:segmentation:ROOT, with the OVERLAP of neighbours behind SIDE where there is one.

    Args:
        place: these words.
        size: has to be None.

    Raises:
        SpecError: other words.
        DataError: an image that is smaller than a tile; and what the folder's own source raises.
    """
    side, _, rest = str(place).partition(":")
    overlap, _, rest_behind = rest.partition(":")
    overlap, rest = (overlap, rest_behind) if overlap.isdecimal() else ("0", rest)
    name, _, root = rest.partition(":")
    if not side.isdecimal() or int(side) < 1 or name not in _FOLDERS or not root:
        raise SpecError(f"'tiles:{place}' is not of the form {FORM}", f"Tiles are cut of: {', '.join(_FOLDERS)}.")
    if int(overlap) >= int(side):
        raise SpecError(
            f"tiles of {side} pixels cannot overlap by {overlap}", "Give less, such as an eighth of a side."
        )
    if size is not None:
        raise DataError("--size does not apply to tiles: images are cut, not resized", "Leave it out.")
    source = _FOLDERS[name](from_home(root), whole=True)
    train, test = (Tiles(images, int(side), int(overlap)) for images in (source.train, source.test))
    return TargetSource(train, test, collate_tiles)


def collate_tiles(samples: Sequence[Any]) -> Batch:
    """A mini-batch of tiles that says where they were cut out."""
    images, targets = default_collate([sample for sample, _ in samples])
    return Batch((images,), target=targets, places=tuple(place for _, place in samples))


@dataclass(frozen=True, eq=False)
class Tiles:
    """The tiles of images with their targets, read by index.

    Args:
        images: whole.
        side: of a tile of the image; that of its target is as many times larger as the target is.
        overlap: of neighbours, at least.
    """

    images: Targeted
    side: int
    overlap: int = 0
    _last: dict[int, Sample] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, ...]:
        """Those of the images."""
        return self.images.files

    @property
    def transform(self) -> ImageTransform:
        """That of the images."""
        return self.images.transform

    def with_transform(self, transform: ImageTransform) -> "Tiles":
        """The same tiles, normalised otherwise."""
        return Tiles(self.images.with_transform(transform), self.side, self.overlap)

    @cached_property
    def places(self) -> list[TilePlace]:
        """Of each tile."""
        places = []
        for index, path in enumerate(self.images.files):
            width, height = pixels_of(path)
            if min(width, height) < self.side:
                raise DataError(
                    f"'{path}' is of {width} x {height} pixels, smaller than a tile of {self.side}",
                    "Ask for smaller tiles, or leave the image out.",
                )
            tops, lefts = (_starts(length, self.side, self.overlap) for length in (height, width))
            places += [TilePlace(index, top, left, height, width) for top in tops for left in lefts]
        return places

    @property
    def groups(self) -> Tensor:
        """The image of each tile."""
        return torch.tensor([place.image for place in self.places])

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> tuple[Sample, TilePlace]:
        place = self.places[number]
        index, top, left = place.image, place.top, place.left
        if index not in self._last:  # the tiles of an image are often read one after the other
            self._last.clear()
            self._last[index] = self.images[index]
        image, target = self._last[index]
        ends = [self._in_target(index, end) for end in (top, top + self.side, left, left + self.side)]
        tile = image[..., top : top + self.side, left : left + self.side]
        return (tile, target[..., ends[0] : ends[1], ends[2] : ends[3]]), place

    def _in_target(self, index: int, end: int) -> int:
        """Where an edge of a tile lies in the target of the image that was read last.

        Raises:
            DataError: between two pixels.
        """
        image, target = self._last[index]
        (height, width), (target_height, target_width) = image.shape[-2:], target.shape[-2:]
        if target_height * width != target_width * height or end * target_width % width:
            raise DataError(
                f"a tile of '{self.files[index]}', of {width} x {height} pixels, ends between two pixels of its "
                f"target, of {target_width} x {target_height}",
                "Crop both so that the target is a whole number of times larger.",
            )
        return int(end * target_width // width)


def _starts(length: int, side: int, overlap: int) -> Sequence[int]:
    """Where tiles begin along a side: next to each other but for the overlap, the last one at the end."""
    starts = list(range(0, length - side + 1, side - overlap))
    return starts if starts[-1] == length - side else [*starts, length - side]
