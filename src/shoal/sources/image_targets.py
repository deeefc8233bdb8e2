"""Images with targets that are no single class: masks of pixels, other images, boxes in the layout of COCO.

Every source holds ROOT/train and ROOT/test (or ROOT/val). Images are decoded when they are read, and brought to one
square size, with their targets.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from shoal.errors import DataError, count_of
from shoal.files.reading import is_folder, open_file, read_json, refusing
from shoal.sources.image_sets import (
    FORMATS,
    IMAGE_FILES,
    IMAGENET,
    as_rgb,
    check_pixels,
    need_pillow,
    turn_upright,
)
from shoal.sources.image_transform import ImageTransform

# A mini-batch of images and boxes cannot be one tensor; those of masks and images can.
Sample = tuple[Tensor, Any]


@dataclass(frozen=True, eq=False)
class TargetImages:
    """Image files with their targets, read by index.

    Args:
        files: of the images.
        targets: read or look up the target of an image, by its index and the image's own (width, height).
        size: height and width of what is returned; None leaves images as they are.
        transform: scale and normalisation of the image.
        upright: turn images as their EXIF orientation says.
    """

    files: tuple[Path, ...]
    targets: Callable[[int, tuple[int, int]], Any]
    size: int | None
    transform: ImageTransform
    upright: bool = True

    def __len__(self) -> int:
        return len(self.files)

    def with_transform(self, transform: ImageTransform) -> "TargetImages":
        """The same images, normalised otherwise."""
        return replace(self, transform=transform)

    def __getitem__(self, index: int) -> Sample:
        image, usual = _image(self.files[index], self.size, self.upright)
        return self.transform(image[None])[0], self.targets(index, usual)


class Targeted(Protocol):
    """Images with targets, read by index."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Of the images."""

    @property
    def transform(self) -> ImageTransform:
        """Scale and normalisation of the images."""

    def with_transform(self, transform: ImageTransform) -> "Targeted":
        """The same, normalised otherwise."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True, eq=False)
class TargetSource:
    """Train and test images with targets.

    Args:
        train: of calibration and validation.
        test: of the record.
        collate: makes a mini-batch of samples, where torch's own way does not.
    """

    train: "Targeted"
    test: "Targeted"
    collate: Callable[[list[Any]], Any] | None = None

    def loaders(
        self, batch_size: int, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> tuple[DataLoader[Any], DataLoader[Any]]:
        """Train and test, normalised by `mean` and `std` where they are not None."""
        parts: list[DataLoader[Any]] = []
        for part in (self.train, self.test):
            transform = replace(
                part.transform,
                mean=part.transform.mean if mean is None else tuple(mean),
                std=part.transform.std if std is None else tuple(std),
            )
            parts.append(DataLoader(part.with_transform(transform), batch_size, collate_fn=self.collate))  # type: ignore[arg-type]
        return parts[0], parts[1]


def _collate_images(samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """Images and targets, which have to be of one size each.

    Raises:
        DataError: they are not.
    """
    for parts in zip(*samples, strict=True):
        sizes = sorted({f"{part.shape[-1]} x {part.shape[-2]}" for part in parts})
        if len(sizes) > 1:
            raise DataError(
                f"images of {' and '.join(sizes[:2])} pixels make no mini-batch",
                "Bring them to one size with --size, or cut tiles: tiles:SIDE:pairs:ROOT.",
            )
    images, targets = (torch.stack(parts) for parts in zip(*samples, strict=True))
    return images, targets


def _collate_boxes(samples: list[Sample]) -> tuple[Tensor, list[Any]]:
    return torch.stack([image for image, _ in samples]), [target for _, target in samples]


def segmentation_folder(root: Path, size: int | None = None, *, whole: bool = False) -> TargetSource:
    """ROOT/train/images and ROOT/train/masks, test likewise: files of the same stem.

    A mask is an 8-bit grey or palette image whose values are classes; 255 says nothing about a pixel.

    Args:
        root: the folder.
        size: height and width in pixels, 256 by default.
        whole: leave images and masks as large as they are.
    """
    side = None if whole else size or 256

    def masks(folder: Path, files: tuple[Path, ...]) -> Callable[[int, tuple[int, int]], Tensor]:
        found = _partners(folder / "masks", files)
        return lambda index, usual: _mask(found[index], side, usual)

    return _source(root, "images", masks, side, ImageTransform(mean=IMAGENET[0], std=IMAGENET[1]))


def pair_folder(root: Path, size: int | None = None, *, whole: bool = False) -> TargetSource:
    """ROOT/train/inputs and ROOT/train/targets, test likewise: images of the same stem, in 0..1.

    Args:
        root: the folder.
        size: height and width of inputs in pixels; targets keep their ratio to them. By default images are left as
            they are, and then all must be of one size.
        whole: leave images as they are, of whichever sizes.
    """

    def targets(folder: Path, files: tuple[Path, ...]) -> Callable[[int, tuple[int, int]], Tensor]:
        found = _partners(folder / "targets", files)

        def read(index: int, usual: tuple[int, int]) -> Tensor:
            with _opened(found[index]) as image:
                scale = image.width / usual[0]
                if abs(image.height - usual[1] * scale) > max(1, scale):  # a pixel of either may be cut off
                    raise DataError(
                        f"the target '{found[index]}' is of {image.size} pixels, its input of {usual}",
                        "Are they the same picture? A target is as many times as high as its input as it is wide.",
                    )
            target, _ = _image(found[index], None if size is None else round(size * scale))
            return target.float() / 255

        return read

    size = None if whole else size
    return _source(root, "inputs", targets, size, ImageTransform())


def coco_folder(root: Path, size: int | None = None) -> TargetSource:
    """The layout of COCO: ROOT/annotations/instances_train*.json and ROOT/train*/, instances_val*.json and ROOT/val*/.

    Images are stretched to a square, boxes with them: (x1, y1, x2, y2) in pixels of the square, labels are the ids of
    the categories, and `iscrowd` is 1 of crowds. Boxes are those of an image as it is stored, so no EXIF orientation is
    followed, as in pycocotools and torchvision.

    Args:
        root: the folder.
        size: height and width in pixels, 512 by default.
    """
    need_pillow()
    parts = []
    for names in (("train",), ("val", "test")):
        listing = [path for name in names for path in sorted((root / "annotations").glob(f"instances_{name}*.json"))]
        if not listing:
            raise DataError(
                f"'{root}' is not laid out as COCO",
                f"Expected: ROOT/annotations/instances_{names[0]}*.json and the images in ROOT/{names[0]}*/.",
            )
        folder = root / listing[0].stem.removeprefix("instances_")
        parts.append(_coco_part(listing[0], folder, size or 512))
    return TargetSource(parts[0], parts[1], _collate_boxes)


@dataclass(frozen=True)
class _Box:
    """An entry of a list of COCO: (x, y, width, height) in pixels of the image as it is stored."""

    place: tuple[float, float, float, float]
    category: int
    is_crowd: bool


def _whole(value: Any) -> int:
    """An id.

    Raises:
        ValueError: it is none.
    """
    number = int(value)
    if isinstance(value, float) and value != number:
        raise ValueError(f"the id {value} is no whole number")
    return number


def _coco_boxes(document: Any, images: Mapping[int, str]) -> tuple[dict[int, list[_Box]], int]:
    """The boxes of each image, and how many there are besides that have no width or no height and are no objects.

    Raises:
        ValueError: what is wrong with one; and other errors where the layout is another.
    """
    categories = {_whole(category["id"]) for category in document.get("categories") or ()}
    boxes: dict[int, list[_Box]] = {key: [] for key in images}
    empty = 0
    for entry in document["annotations"]:
        image, category = _whole(entry["image_id"]), _whole(entry["category_id"])
        box = [float(value) for value in entry["bbox"]]
        if len(box) != 4 or not all(map(math.isfinite, box)) or min(box[2:]) < 0:
            raise ValueError(f"the box {box} of image {image} is no (x, y, width, height)")
        if categories and category not in categories:
            raise ValueError(f"the category {category} of image {image} is not among the categories")
        if image not in boxes:
            raise ValueError(f"an annotation is of image {image}, which is not among the images")
        if min(box[2:]) == 0:
            empty += 1
            continue
        boxes[image].append(_Box((box[0], box[1], box[2], box[3]), category, bool(entry.get("iscrowd"))))
    return boxes, empty


def _coco_part(listing: Path, folder: Path, size: int) -> TargetImages:
    expected = "It is a JSON object with images (id, file_name) and annotations (image_id, category_id, bbox)."
    with refusing(DataError, f"'{listing}' is no list of COCO", expected):
        document = read_json(listing)
        if not isinstance(document, dict) or not {"images", "annotations"} <= document.keys():
            raise ValueError("it has no images and annotations")
        images = {_whole(image["id"]): str(image["file_name"]) for image in document["images"]}
        if len(images) < len(document["images"]):
            raise ValueError("several images have the same id")
        sizes = {_whole(image["id"]): (image.get("width"), image.get("height")) for image in document["images"]}
        boxes, empty = _coco_boxes(document, images)
    if empty:
        left_out = f"{count_of(empty, 'annotation')} left out, whose box has no width or no height"
        warnings.warn(f"'{listing}': {left_out}", stacklevel=4)
    outside = next((name for name in images.values() if Path(name).is_absolute() or ".." in Path(name).parts), None)
    if outside is not None:
        raise DataError(f"'{listing}' names the image '{outside}', outside of its folder", "Repair the list.")
    keys = sorted(images)
    files = tuple(folder / images[key] for key in keys)
    if not files:
        raise DataError(f"'{listing}' lists no image", "Give data that is not empty.")

    def targets(index: int, usual: tuple[int, int]) -> dict[str, Tensor]:
        entries, stated = boxes[keys[index]], sizes[keys[index]]
        if None not in stated and stated != usual:
            raise DataError(
                f"'{files[index]}' is of {usual} pixels, '{listing.name}' lists it with {stated}",
                "Its boxes are those of another image: repair the list, or give the image as it was. "
                "An EXIF orientation is not followed here: save an image turned where its boxes are.",
            )
        outside = next((list(box.place) for box in entries if not _overlaps(box.place, usual)), None)
        if outside is not None:
            raise DataError(
                f"the box {outside} lies outside of '{files[index]}', which is of {usual} pixels",
                "Boxes are (x, y, width, height) in pixels of the image as it is stored.",
            )
        corners = torch.tensor([box.place for box in entries], dtype=torch.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        scale = torch.tensor([size / usual[0], size / usual[1]] * 2)
        return {
            "boxes": corners * scale,
            "labels": torch.tensor([box.category for box in entries], dtype=torch.int64),
            "iscrowd": torch.tensor([box.is_crowd for box in entries], dtype=torch.int64),
        }

    return TargetImages(files, targets, size, ImageTransform(), upright=False)


def _overlaps(box: Sequence[float], size: tuple[int, int]) -> bool:
    """Whether a box (x, y, width, height) has a point in common with an image."""
    left, top, width, height = box
    return left <= size[0] and top <= size[1] and left + width >= 0 and top + height >= 0


def _source(
    root: Path,
    inputs: str,
    targets: Callable[[Path, tuple[Path, ...]], Callable[[int, tuple[int, int]], Any]],
    size: int | None,
    transform: ImageTransform,
) -> TargetSource:
    need_pillow()
    test = next((name for name in ("test", "val") if is_folder(root / name)), "test")
    parts = []
    for name in ("train", test):
        folder = root / name
        if not is_folder(folder / inputs):
            raise DataError(f"there is no folder '{folder / inputs}'", f"Expected images in ROOT/{name}/{inputs}.")
        files = tuple(sorted(path for path in (folder / inputs).iterdir() if path.suffix.lower() in IMAGE_FILES))
        if not files:
            raise DataError(f"there are no images in '{folder / inputs}'", "Give at least two.")
        parts.append(TargetImages(files, targets(folder, files), size, transform))
    return TargetSource(parts[0], parts[1], _collate_images)


def _partners(folder: Path, files: tuple[Path, ...]) -> list[Path]:
    """The file of the same stem for each of these."""
    if not is_folder(folder):
        raise DataError(f"there is no folder '{folder}'", "It holds a file of the same name for each image.")
    by_stem = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_FILES}
    missing = [file.name for file in files if file.stem not in by_stem]
    if missing:
        raise DataError(
            f"'{folder}' has no partner for {len(missing)} of {len(files)} images, the first is {missing[0]}",
            "Each image has a file of the same name there; the ending may differ.",
        )
    return [by_stem[file.stem] for file in files]


def _opened(path: Path, upright: bool = True) -> Any:
    from PIL import Image

    with refusing(DataError, f"'{path}' cannot be read as an image", "Remove or repair the file."):
        with open_file(path) as content:
            image = Image.open(content, formats=FORMATS)
            check_pixels(image.size)
            image.load()
        if upright:
            turn_upright(image)
        return image


def pixels_of(path: Path) -> tuple[int, int]:
    """Width and height of an upright image, which is not decoded.

    Raises:
        DataError: it is none.
    """
    from PIL import ExifTags, Image

    with (
        refusing(DataError, f"'{path}' cannot be read as an image", "Remove or repair the file."),
        open_file(path) as content,
    ):
        image = Image.open(content, formats=FORMATS)
        is_across = image.getexif().get(ExifTags.Base.Orientation, 1) in range(5, 9)
        return (image.height, image.width) if is_across else image.size


def _image(path: Path, size: int | None, upright: bool = True) -> tuple[Tensor, tuple[int, int]]:
    """8-bit RGB, (3, height, width), stretched to a square where a size is given; and its own (width, height)."""
    from PIL import Image

    opened = _opened(path, upright)
    with refusing(DataError, f"'{path}' cannot be read as an image", "Save it with 8 or 16 bits."):
        image = as_rgb(opened)
    usual = image.size
    if size is not None:
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1), usual


def _mask(path: Path, size: int | None, usual: tuple[int, int]) -> Tensor:
    from PIL import Image

    image = _opened(path)
    if image.mode not in ("L", "P"):
        raise DataError(
            f"the mask '{path}' is of the mode {image.mode}, expected 8-bit grey (L) or palette (P)",
            "Save masks as PNG files whose values are the classes.",
        )
    if image.size != usual:
        raise DataError(f"the mask '{path}' is of {image.size} pixels, its image of {usual}", "They must be alike.")
    if size is not None:
        image = image.resize((size, size), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(image)).long()
