"""Data in one file of numpy arrays: `x_train`, `y_train`, `x_test`, `y_test`."""

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoal.errors import DataError, count_of, did_you_mean
from shoal.files.reading import check_member, is_file, open_file, refusing
from shoal.sources.image_transform import ImageTransform
from shoal.sources.parts import InMemory, Source

_MAGIC = b"\x93NUMPY"
_LABELS = 10**6  # more classes than any data set has
_KEYS = ["x_train", "y_train", "x_test", "y_test"]


def npz(path: Path) -> Source:
    """Samples from a `.npz` file; arrays of Python objects are refused, since reading them would run code.

    `x_*`: uint8 images (samples, channels, height, width), channels last, or without a channel axis, which
    are scaled to 0..1; or floating arrays of any shape, used as they are. `y_*`: class indices, shape
    (samples,), in both parts or in neither.

    Raises:
        DataError: the file cannot be read, or its arrays do not fit.
    """
    arrays, names = _read(path)
    for key in ("x_train", "x_test"):
        if key not in arrays:
            hint = did_you_mean(key, names)
            raise DataError(f"'{path.name}' has no array '{key}'", f"Expected: {', '.join(_KEYS)}. {hint}".strip())
    if ("y_train" in arrays) != ("y_test" in arrays):
        raise DataError(f"'{path.name}' has labels for one part only", "Give y_train and y_test, or neither.")
    train, test = _samples(arrays["x_train"], "x_train"), _samples(arrays["x_test"], "x_test")
    if train.shape[1:] != test.shape[1:]:
        raise DataError(f"x_train and x_test differ in shape: {tuple(train.shape)} and {tuple(test.shape)}")
    has_labels = "y_train" in arrays
    train_labels = _labels(arrays["y_train"], "y_train", len(train)) if has_labels else None
    test_labels = _labels(arrays["y_test"], "y_test", len(test)) if has_labels else None
    is_image = train.dim() == 4
    transform = ImageTransform(shifts=is_image, flips=is_image and train.shape[1] == 3)
    return Source(InMemory(train), InMemory(test), train_labels, test_labels, transform)


def _read(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays that are needed, and the names of all there are: the others are not unpacked."""
    if not is_file(path):
        raise DataError(f"there is no file '{path}'", "Give the path of a .npz file.")
    with (
        refusing(DataError, f"'{path.name}' cannot be read as .npz", "Save it with numpy.savez."),
        open_file(path) as file,
    ):
        if file.read(len(_MAGIC)) == _MAGIC:
            raise DataError(f"'{path.name}' holds one array, not named ones", "Save it with numpy.savez.")
        with zipfile.ZipFile(file) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            return {key: _array(archive, members[key], path) for key in _KEYS if key in members}, list(members)


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> np.ndarray:
    """One array, not larger than its member says that it is."""
    check_member(member)
    with archive.open(member) as content:
        version = np.lib.format.read_magic(content)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = header(content)
        if not dtype.hasobject and dtype.kind not in "uifb":
            raise DataError(
                f"'{path.name}' holds what is no array of numbers: '{member.filename}' is of type {dtype}",
                "Save whole or floating-point numbers; of complex ones the real and the imaginary parts as channels.",
            )
        if dtype.hasobject:
            raise DataError(
                f"'{path.name}' holds Python objects, not plain arrays: '{member.filename}' is of type {dtype}",
                "Save arrays of numbers; Shoal never unpickles.",
            )
        size = math.prod(shape) * dtype.itemsize
        if not 0 <= size <= member.file_size:
            raise ValueError(f"'{member.filename}' of shape {shape} would take {size} bytes, it has {member.file_size}")
        flat = np.frombuffer(bytearray(content.read(size)), dtype=dtype)
        return flat.reshape(shape[::-1]).T if is_fortran else flat.reshape(shape)


def _samples(array: Any, key: str) -> Tensor:
    if array.ndim < 2 or len(array) == 0:
        raise DataError(f"{key} holds no samples: shape {array.shape}", "Expected: (samples, ...), not empty.")
    if array.dtype == np.uint8:
        return torch.from_numpy(_channels_first(array, key))
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"{key} is of type {array.dtype}", "Expected: uint8 images, or floating-point numbers.")
    values = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if not torch.isfinite(values).all():
        count = int((~torch.isfinite(values)).sum())
        raise DataError(f"{key} holds NaN or Inf: {count} of {values.numel()} values", "Clean the data first.")
    return values


def _channels_first(array: Any, key: str) -> Any:
    """Images as (samples, channels, height, width): the channel axis is the one of length 1, 3 or 4."""
    if array.ndim == 3:
        return array[:, None].copy()
    if array.ndim == 4 and array.shape[1] in (1, 3, 4):
        return array
    if array.ndim == 4 and array.shape[3] in (1, 3, 4):
        return np.ascontiguousarray(array.transpose(0, 3, 1, 2))
    raise DataError(
        f"{key} of shape {array.shape} is not images: no axis of 1, 3 or 4 channels",
        "Expected: (samples, channels, height, width) or (samples, height, width, channels), or floats.",
    )


def _labels(array: Any, key: str, count: int) -> Tensor:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    samples = count_of(count, "sample")
    if array.ndim != 1 or len(array) != count:
        raise DataError(f"{key} of shape {array.shape} does not fit {samples}", f"Expected: shape ({count},).")
    if not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{key} is of type {array.dtype}", "Expected: class indices, whole numbers from 0.")
    if array.max(initial=0) > _LABELS:
        raise DataError(f"{key} holds a label of {array.max()}", f"Expected: class indices from 0, below {_LABELS}.")
    if array.min(initial=0) < 0:
        raise DataError(f"{key} holds a negative label: {array.min()}", "Expected: class indices from 0.")
    return torch.from_numpy(array.astype(np.int64))
