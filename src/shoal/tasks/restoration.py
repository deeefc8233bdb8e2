"""Restoration: an image for an image, as in super-resolution, denoising of photographs, or translation of images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shoal.batches import Batch
from shoal.errors import NonFiniteError
from shoal.measure.output_reading import Expectation, squared_error
from shoal.outputs import Outputs
from shoal.tasks.libraries import torchmetrics_functional
from shoal.tasks.task import Metric, Reference, Row, Task, are_yes_or_no, main_tensor, module_names, wrong_shape

_NAMES = ("reconstruction",)
# Two images that are equal to the bit differ by less than what 8 bits can tell; their ratio is cut there.
_LARGEST_DB = 100.0
_RANGES = (1.0, 2.0, 255.0)  # that pixels usually have


def _image(output: Any) -> Tensor:
    return main_tensor(output, *_NAMES).detach().cpu().double()


def _target(reference: Reference) -> Tensor:
    value = reference.value if reference.against == "labels" else _image(reference.value)
    return value.detach().cpu().double()


def _range(low: float, high: float) -> float:
    """How far pixels can be apart: 255, or 1 where none is above 1.5 (a restored pixel may overshoot), or 2 of -1 to 1.

    Pixels that are normalised otherwise have the range that they take.
    """
    if low >= -0.5:
        return 255.0 if high > 1.5 else 1.0
    return 2.0 if low >= -1.5 and high <= 1.5 else high - low


def _psnr_rows(output: Any, reference: Reference, batch: Batch) -> list[Row]:
    """For each image the squared error, and the lowest and the highest pixel of what it should be."""
    target = _target(reference)
    pixels = target.flatten(1)
    return list(torch.stack([squared_error(target, _image(output)), pixels.amin(1), pixels.amax(1)], dim=1).numpy())


def _decibels(rows: Sequence[Row]) -> list[Row]:
    """The ratio of each image, by the range of all: an image may be dark from end to end."""
    errors, lowest, highest = np.stack(rows).T
    ratios = 10 * np.log10(_range(lowest.min(), highest.max()) ** 2 / np.maximum(errors, 1e-30))
    return list(np.minimum(ratios, _LARGEST_DB))


@dataclass(frozen=True, eq=False)
class _Similarity:
    """The SSIM of one image, whose range of pixels is known only when all images have been seen.

    Args:
        lowest: pixel of what the image should be.
        highest: likewise.
        values: SSIM for each of the usual ranges.
        images: what the network returned and what it should be, where pixels may be normalised in another way.
    """

    lowest: float
    highest: float
    values: tuple[float, ...]
    images: tuple[Tensor, Tensor] | None


def _ssim(output: Tensor, target: Tensor, span: float) -> Tensor:
    similarity = torchmetrics_functional("image", "structural_similarity_index_measure")
    values: Tensor = similarity(output, target, data_range=span, reduction="none")
    return values.double().reshape(-1)


def _ssim_rows(output: Any, reference: Reference, batch: Batch) -> list[Row]:
    answer, target = _image(output).float(), _target(reference).float()
    low, high = float(target.min()), float(target.max())
    # In 0..1 or 0..255, up to what a network overshoots: the images themselves need not be kept.
    are_usual = low >= -0.05 and not 1.05 < high <= 16
    values = torch.stack([_ssim(answer, target, span) for span in _RANGES], dim=1)
    return [
        _Similarity(float(y.min()), float(y.max()), tuple(row.tolist()), None if are_usual else (x, y))
        for x, y, row in zip(answer, target, values, strict=True)
    ]


def _ssim_by_range(rows: Sequence[_Similarity]) -> list[Row]:
    """The SSIM of each image, by the range of all.

    Raises:
        NonFiniteError: that range is an unusual one, and not all mini-batches looked so.
    """
    low, high = min(row.lowest for row in rows), max(row.highest for row in rows)
    span = _range(low, high)
    if span in _RANGES:
        return [row.values[_RANGES.index(span)] for row in rows]
    kept = [row.images for row in rows if row.images is not None]
    if len(kept) < len(rows):
        raise NonFiniteError(
            f"SSIM has no figure: pixels reach from {low:g} to {high:g}, those of some mini-batches only from 0 to 1"
            " or 255",
            "Give targets of 0 to 1, or larger mini-batches.",
        )
    return [float(_ssim(x[None], y[None], span)) for x, y in kept]


def _fits(output: Any, labels: Any) -> bool:
    return isinstance(labels, Tensor) and labels.is_floating_point() and labels.shape == _image(output).shape


def _has_windows(output: Any) -> bool:
    """Whether SSIM, which looks through windows of 11 x 11 pixels, can be computed."""
    image = _image(output)
    return image.dim() == 4 and min(image.shape[-2:]) >= 11


def _mean(rows: Sequence[Row]) -> float:
    return float(np.mean(rows))


def _recognize(model: nn.Module, outputs: Outputs, labels: Tensor | None) -> str | None:
    for name in module_names(model):
        if name.endswith(("ForImageSuperResolution", "ForImageToImage")):
            return f"{name.rsplit('.', 1)[-1]} restores images"
    images = [tensor for tensor in outputs.floating.values() if tensor.dim() == 4 and tensor.shape[1] in (1, 3)]
    if labels is None or not labels.is_floating_point() or len(outputs.floating) != 1 or len(images) != 1:
        return None
    fits = labels.shape == images[0].shape and not are_yes_or_no(labels)
    return "the targets are images of the output's shape" if fits else None


RESTORATION = Task(
    "restoration",
    (
        Metric("psnr", "PSNR", _psnr_rows, _mean, "dB", fits=_fits, prepare=_decibels),
        Metric(
            "ssim",
            "SSIM",
            _ssim_rows,
            _mean,
            "%",
            fits=_fits,
            applies=_has_windows,
            perfect=1.0,
            prepare=_ssim_by_range,
        ),
    ),
    Expectation("restoration", "values"),
    outputs=_NAMES,
    recognize=_recognize,
    obstacle=lambda model, tensors: wrong_shape(tensors, 3, 5, "images (samples, channels, height, width)"),
)
