"""Image data sets: the embedded digits, those of torchvision in a folder that is already there, and folders of images.

Nothing is downloaded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoal.errors import DataError, check_memory
from shoal.files.reading import is_folder, open_file, refusing
from shoal.sources.image_transform import ImageTransform
from shoal.sources.parts import InMemory, Source, hold_out

IMAGE_FILES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff"}

FORMATS = ("JPEG", "PNG", "BMP", "PPM", "WEBP", "TIFF")  # none that another program would be started for
_PIXELS = 2**26  # of one image, as it is stored and once it is scaled: 200 MB

# Mean and standard deviation per channel of pixels in 0..1, as these data sets are usually normalised.
_CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_CIFAR100 = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
_SVHN = ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def cifar10(root: Path) -> Source:
    """CIFAR-10, (3, 32, 32), from ROOT/cifar-10-batches-py."""
    return _cifar("CIFAR10", root, "cifar-10-batches-py", *_CIFAR10)


def cifar100(root: Path) -> Source:
    """CIFAR-100, (3, 32, 32), from ROOT/cifar-100-python."""
    return _cifar("CIFAR100", root, "cifar-100-python", *_CIFAR100)


def svhn(root: Path) -> Source:
    """Street View House Numbers, (3, 32, 32), from ROOT/train_32x32.mat and ROOT/test_32x32.mat."""
    datasets = _datasets()
    expected = f"'{root}' must hold train_32x32.mat and test_32x32.mat"
    train, test = (_opened(partial(datasets.SVHN, root, split=s), root, expected) for s in ("train", "test"))
    transform = ImageTransform(mean=_SVHN[0], std=_SVHN[1], shifts=True)  # a mirrored digit is another sign
    return Source(
        InMemory(torch.from_numpy(train.data)),
        InMemory(torch.from_numpy(test.data)),
        torch.as_tensor(train.labels).long(),
        torch.as_tensor(test.labels).long(),
        transform,
    )


def image_folder(root: Path, size: int | None = None) -> Source:
    """Image files in ROOT/train/CLASS and ROOT/test/CLASS (or ROOT/val/CLASS), decoded when they are read.

    Args:
        root: the folder.
        size: height and width in pixels: the shorter side is scaled to it, the centre cut out; 224 if None.
    """
    test = next((root / name for name in ("test", "val") if is_folder(root / name)), None)
    if not is_folder(root / "train") or test is None:
        raise DataError(
            f"'{root}' is not a folder of images",
            "Expected: ROOT/train/CLASS/*.jpg and ROOT/test/CLASS/*.jpg.",
        )
    with refusing(DataError, f"the folder of images '{root}' cannot be read", "Check its permissions."):
        classes = sorted(folder.name for folder in (root / "train").iterdir() if folder.is_dir())
        strange = sorted(folder.name for folder in test.iterdir() if folder.is_dir() and folder.name not in classes)
    if strange:
        raise DataError(
            f"'{test}' has classes that train has not: {', '.join(strange[:5])}",
            "The same class must have the same folder name in both.",
        )
    train_images, train_labels = _files(root / "train", classes, size or 224)
    test_images, test_labels = _files(test, classes, size or 224)
    transform = ImageTransform(mean=IMAGENET[0], std=IMAGENET[1], shifts=True, flips=True)
    return Source(train_images, test_images, train_labels, test_labels, transform)


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files that become (3, size, size) 8-bit RGB when they are read."""

    paths: tuple[Path, ...]
    size: int

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return (3, self.size, self.size)

    def take(self, rows: Tensor) -> Tensor:
        """The images at these indices, decoded now."""
        return torch.stack([_decoded(self.paths[row], self.size) for row in rows.tolist()])


def _decoded(path: Path, size: int) -> Tensor:
    from PIL import Image

    with (
        refusing(DataError, f"'{path}' cannot be read as an image", "Remove or repair the file."),
        open_file(path) as content,
        Image.open(content, formats=FORMATS) as file,
    ):
        check_pixels(file.size)
        turn_upright(file)
        scale = size / max(1, min(file.size))
        width, height = (max(size, round(side * scale)) for side in file.size)
        check_pixels((width, height))
        image = as_rgb(file).resize((width, height), Image.Resampling.BILINEAR)
    x, y = (width - size) // 2, (height - size) // 2
    pixels = np.array(image.crop((x, y, x + size, y + size)))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def as_rgb(image: Any) -> Any:
    """An image of Pillow in 8-bit RGB; one of 16 bits with its whole range, which Pillow itself would cut at 255.

    Raises:
        ValueError: its pixels have more bits.
    """
    from PIL import Image

    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if image.mode in ("I", "F") and not sixteen:
        raise ValueError("its pixels are of 32 bits, expected 8 or 16")
    if sixteen:
        image = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
    return image.convert("RGB")


def turn_upright(image: Any) -> None:
    """Turn an opened image of Pillow in place as its EXIF orientation says, which is how viewers show it."""
    from PIL import ImageOps

    ImageOps.exif_transpose(image, in_place=True)


def check_pixels(size: tuple[int, int]) -> None:
    """Refuse an image that would take more memory than any photograph, as (width, height).

    Raises:
        ValueError: with the size.
    """
    width, height = size
    if width * height > _PIXELS:
        raise ValueError(f"it would take {width} x {height} pixels, at most {_PIXELS} are read")


def _files(folder: Path, classes: list[str], size: int) -> tuple[ImageFiles, Tensor]:
    need_pillow()
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in IMAGE_FILES)
        paths += images
        labels += [label] * len(images)
    if not paths:
        raise DataError(
            f"there are no images in '{folder}'", f"Expected: CLASS/*.jpg in it, for {len(classes)} classes."
        )
    return ImageFiles(tuple(paths), size), torch.tensor(labels)


def _cifar(name: str, root: Path, folder: str, mean: tuple[float, ...], std: tuple[float, ...]) -> Source:
    # These files are pickles; torchvision reads them only after their MD5 sums match the published ones.
    kind = getattr(_datasets(), name)
    expected = f"'{root}' must hold the folder {folder} with the Python version of the data set"
    train, test = (_opened(partial(kind, root, train=t, download=False), root, expected) for t in (True, False))
    train_images, test_images = (torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in (train, test))
    transform = ImageTransform(mean=mean, std=std, shifts=True, flips=True)
    return Source(
        InMemory(train_images),
        InMemory(test_images),
        torch.tensor(train.targets),
        torch.tensor(test.targets),
        transform,
    )


def _opened(build: Callable[[], Any], root: Path, expected: str) -> Any:
    try:
        return build()
    except Exception as error:
        check_memory(error, f"while '{root}' was read")
        state = "is not complete" if root.is_dir() else "does not exist"
        raise DataError(f"the data folder '{root}' {state}", f"{expected}; Shoal does not download data.") from error


def _datasets() -> Any:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise DataError("torchvision is not installed", "pip install 'shoal[vision]'") from error
    return datasets


def need_pillow() -> None:
    """Refuse image files where nothing can read them.

    Raises:
        DataError: Pillow is not installed.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise DataError("Pillow, which reads image files, is not installed", "pip install 'shoal[vision]'") from error


def digits() -> Source:
    """1,797 handwritten digits, (1, 8, 8), 17 grey levels: a quarter of every class is test.

    The split does not follow the user's seed: the embedded network was trained on the calibration part, and
    validation and test must stay unseen by it.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).to(torch.uint8).view(-1, 1, 8, 8)
    classes = torch.from_numpy(labels).long()
    train, test = hold_out(len(images), 0.25, seed=0, labels=classes)
    transform = ImageTransform(scale=1 / 16, mean=(0.3053,), std=(0.3761,), shifts=True)
    return Source(
        InMemory(images[train]), InMemory(images[test]), classes[train], classes[test], transform, split_seed=0
    )
