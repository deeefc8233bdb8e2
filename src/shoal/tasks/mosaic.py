"""Tiles put together again: a metric of images is about whole images, not about the tiles they were cut into.

Where tiles overlap, what a network returns is blended: the nearer to the middle of its tile, the more it weighs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from shoal.batches import Batch, TilePlace
from shoal.outputs import read_outputs


@dataclass
class Mosaics:
    """Collects what two networks return for tiles, and gives it back image by image.

    Tiles of which some never came, as where only the first samples are looked at, count one by one if no image is
    whole, and are left out otherwise.
    """

    _open: dict[int, "_Image"] = field(default_factory=dict)
    _any_whole: bool = False

    def add(self, original: Any, changed: Any, batch: Batch) -> Iterator[tuple[Any, Any, Batch]]:
        """What can be measured now: the batch itself where it holds no tiles of images, else the images it completes.

        Args:
            original: what the original returned.
            changed: what the changed network returned.
            batch: what both were called with.
        """
        outputs = [_maps(output, batch) for output in (original, changed)] if batch.places is not None else []
        if batch.places is None or not all(outputs):
            yield original, changed, batch
            return
        for row, place in enumerate(batch.places):
            image = self._open.setdefault(place.image, _Image(place))
            image.add(place, outputs, batch, row)
            if image.is_whole:
                self._any_whole = True
                yield self._open.pop(place.image).measured()

    def rest(self) -> Iterator[tuple[Any, Any, Batch]]:
        """The tiles of images that are not whole, where there is no whole one."""
        if not self._any_whole:
            for image in self._open.values():
                yield from image.tiles


class _Image:
    """Its tiles so far, and their sum."""

    def __init__(self, place: TilePlace) -> None:
        self.size = place.height, place.width
        self.covered = torch.zeros(self.size, dtype=torch.bool)
        self.tiles: list[tuple[Any, Any, Batch]] = []
        self.places: list[TilePlace] = []

    @property
    def is_whole(self) -> bool:
        return bool(self.covered.all())

    def add(self, place: TilePlace, outputs: list[dict[str, Tensor]], batch: Batch, row: int) -> None:
        """One tile: row `row` of a mini-batch and of what both networks returned for it."""
        sides = batch.tensors[0].shape[-2:]
        self.covered[place.top : place.top + sides[0], place.left : place.left + sides[1]] = True
        original, changed = ({name: tensor[row : row + 1] for name, tensor in maps.items()} for maps in outputs)
        target = batch.target[row : row + 1] if batch.target is not None else None
        tile = Batch((batch.tensors[0][row : row + 1],), target=target)
        self.tiles.append((_alone(original), _alone(changed), tile))
        self.places.append(place)

    def measured(self) -> tuple[Any, Any, Batch]:
        """Both outputs of the whole image, and the image with its target."""
        originals, changes, batches = zip(*self.tiles, strict=True)
        side = int(batches[0].tensors[0].shape[-1])
        inputs = self._blend([batch.tensors[0] for batch in batches], side)
        targets = [batch.target for batch in batches if batch.target is not None]
        whole = Batch((inputs,), target=self._blend(targets, side) if len(targets) == len(batches) else None)
        return self._blend_outputs(originals, side), self._blend_outputs(changes, side), whole

    def _blend_outputs(self, outputs: tuple[Any, ...], side: int) -> Any:
        if isinstance(outputs[0], Tensor):
            return self._blend(list(outputs), side)
        return {name: self._blend([output[name] for output in outputs], side) for name in outputs[0]}

    def _blend(self, tiles: list[Tensor], side: int) -> Tensor:
        """Tiles of an image, `side` pixels wide there, as one; integers, which are the same in each, are not mixed.

        What is mixed is summed in float32 at least: half precision does not hold the weights of a large tile.
        """
        first = tiles[0]
        kind = torch.promote_types(first.dtype, torch.float32) if first.is_floating_point() else first.dtype
        scale = first.shape[-1] / side
        height, width = (round(length * scale) for length in self.size)
        total = first.new_zeros((*first.shape[:-2], height, width), dtype=kind)
        weights = torch.zeros((height, width), device=first.device)
        ramp = _ramp(first.shape[-2])[:, None] * _ramp(first.shape[-1])
        ramp = ramp.to(first.device)
        for tile, place in zip(tiles, self.places, strict=True):
            top, left = round(place.top * scale), round(place.left * scale)
            here = (..., slice(top, top + tile.shape[-2]), slice(left, left + tile.shape[-1]))
            if tile.is_floating_point():
                total[here] += tile * ramp.to(kind)
                weights[here] += ramp
            else:
                total[here] = tile
        return total / weights.to(kind) if first.is_floating_point() else total


def _ramp(length: int) -> Tensor:
    """Weights that fall evenly from the middle to the ends, where they are above zero."""
    positions = torch.arange(1, length + 1, dtype=torch.float32)
    return torch.minimum(positions, positions.flip(0))


def _maps(output: Any, batch: Batch) -> dict[str, Tensor]:
    """The outputs that have a pixel for each pixel of the tile, or several."""
    height, width = batch.tensors[0].shape[-2:]
    return {
        name: tensor
        for name, tensor in read_outputs(output).floating.items()
        if tensor.dim() >= 3
        and len(tensor) == batch.size
        and tensor.shape[-1] % width == 0
        and tensor.shape[-1] * height == tensor.shape[-2] * width
    }


def _alone(maps: dict[str, Tensor]) -> Any:
    return maps[""] if list(maps) == [""] else maps
