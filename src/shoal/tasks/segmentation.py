"""Segmentation: a class for every pixel."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.batches import IGNORED, Batch
from shoal.errors import NonFiniteError
from shoal.measure.classes import HOW_TO_MARK, VOID, WHITE_MASKS, MaskValues, binary_scores
from shoal.measure.output_reading import Expectation
from shoal.outputs import Outputs, read_outputs
from shoal.tasks.task import Metric, Reference, Row, Task, main_tensor, module_names, wrong_shape

_NAMES = ("out", "logits")
_QUERIES = frozenset(["class_queries_logits", "masks_queries_logits"])
_UNCOUNTED = (IGNORED, VOID)  # labels that say nothing: torch's, and that of the VOC and ADE20K data sets


def _scores(output: Any) -> Tensor:
    """Scores of classes for each pixel: of background and foreground where there is one, the foreground's logit.

    Of a network that answers by queries they are those that it draws its map by.

    Source: Cheng et al. 2021, Per-pixel classification is not all you need, section 3.4 (semantic inference).
    """
    tensors = read_outputs(output).tensors
    if tensors.keys() >= _QUERIES:
        classes, masks = (tensors[name].detach().cpu().float() for name in sorted(_QUERIES))
        # The last class stands for no object.
        return torch.einsum("bqc,bqhw->bchw", classes.softmax(dim=-1)[..., :-1], masks.sigmoid())
    scores = main_tensor(output, *_NAMES).detach().cpu().float()
    return binary_scores(scores) if scores.dim() > 2 and scores.shape[1] == 1 else scores


def _classes(labels: Any) -> Tensor | None:
    """Classes of pixels, (samples, height, width); None where the labels are none.

    Losses that want one channel leave masks as (samples, 1, height, width), and some loaders leave them as floats.
    """
    if not isinstance(labels, Tensor):
        return None
    labels = labels.detach().cpu()
    labels = labels.squeeze(1) if labels.dim() == 4 and labels.shape[1] == 1 else labels
    if labels.dim() != 3 or (labels.is_floating_point() and not torch.equal(labels, labels.round())):
        return None
    return labels.long()


def _confusions(output: Any, reference: Reference, batch: Batch) -> list[Row]:
    """For each image how many pixels of each true class got which class, and in a last row those that are 255.

    Of (classes + 1, classes); 255 is a class like others where the network has so many.
    """
    scores = _scores(output)
    labels = _classes(reference.value) if reference.against == "labels" else None
    target = _scores(reference.value).argmax(dim=1) if labels is None else labels
    if labels is not None and labels.shape[-2:] != scores.shape[-2:]:  # some answer at a quarter of the resolution
        scores = F.interpolate(scores, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    answer, classes = scores.argmax(dim=1), int(scores.shape[1])
    rows = []
    for truth, seen in zip(target.reshape(batch.size, -1), answer.reshape(batch.size, -1), strict=True):
        counted = torch.ones_like(truth, dtype=torch.bool)
        for label in _UNCOUNTED:
            counted &= truth != label if label < 0 or label >= classes else counted
        cells = truth[counted] * classes + seen[counted]
        known = torch.bincount(cells, minlength=classes * classes).reshape(classes, classes)
        void = torch.bincount(seen[(truth == VOID) & ~counted], minlength=classes)
        rows.append(torch.cat([known, void[None]]).double().numpy())
    return rows


def _of_classes(rows: Sequence[Row]) -> list[Row]:
    """The rows without what is 255.

    Raises:
        NonFiniteError: there is no figure: of all samples, no pixel is of a class but 0, and some are 255.
    """
    zero, *others, void = np.sum(rows, axis=0).any(axis=1)
    if MaskValues(zero, any(others), void).are_white:
        raise NonFiniteError(f"{WHITE_MASKS}, so a metric of them has no figure", HOW_TO_MARK)
    return [row[:-1] for row in rows]


def _miou(rows: Sequence[Row]) -> float:
    """The mean over the classes that occur, in truth or answer, of intersection over union."""
    total = np.sum(rows, axis=0)
    hits, union = np.diag(total), total.sum(0) + total.sum(1) - np.diag(total)
    return float((hits[union > 0] / union[union > 0]).mean()) if (union > 0).any() else float("nan")


def _accuracy(rows: Sequence[Row]) -> float:
    total = np.sum(rows, axis=0)
    return float(np.trace(total) / total.sum()) if total.sum() else float("nan")


def _fits(output: Any, labels: Any) -> bool:
    classes = _classes(labels)
    if classes is None:
        return False
    scores, counted = _scores(output), torch.ones_like(classes, dtype=torch.bool)
    for label in _UNCOUNTED:
        counted &= classes != label
    known = classes[counted]  # none in an image where no pixel has a class: it adds nothing, and is no misfit
    return scores.dim() == 4 and bool(((known >= 0) & (known < scores.shape[1])).all())


def _has_classes(output: Any) -> bool:
    """Whether there is a choice of classes: queries that all are of one class, no logit, leave none."""
    return _scores(output).shape[1] > 1


def _metric(name: str, label: str, value: Callable[[Sequence[Row]], float]) -> Metric:
    return Metric(
        name,
        label,
        _confusions,
        value,
        "%",
        fits=_fits,
        applies=_has_classes,
        prepare=_of_classes,
        perfect=1.0,
        bounded=True,
    )


def _are_numbers(labels: Tensor | None) -> bool:
    """Whether targets have one real number for each pixel that is no class: a depth, or another quantity."""
    if labels is None or not labels.is_floating_point():
        return False
    single = labels.dim() == 3 or (labels.dim() == 4 and labels.shape[1] == 1)
    return single and not torch.equal(labels, labels.round())


def _recognize(model: nn.Module, outputs: Outputs, labels: Tensor | None) -> str | None:
    if _are_numbers(labels):
        return None
    for name in module_names(model):
        if name.startswith("torchvision.models.segmentation"):
            return "it is a segmentation network of torchvision"
        if name.endswith(("ForSemanticSegmentation", "ForUniversalSegmentation")):
            return f"{name.rsplit('.', 1)[-1]} labels pixels"
    if labels is None or labels.is_floating_point() or labels.dim() != 3:
        return None
    maps = [tensor for tensor in outputs.floating.values() if tensor.dim() == 4 and tensor.shape[1] > 1]
    fits = any(tensor.shape[-2:] == labels.shape[-2:] for tensor in maps)
    return "the labels are a class for each pixel" if fits else None


SEGMENTATION = Task(
    "segmentation",
    (
        _metric("miou", "mIoU", _miou),
        _metric("pixel_accuracy", "Pixel accuracy", _accuracy),
    ),
    Expectation("segmentation", "classes", axis=1, names=("", "out", "aux", "logits"), binary=True),
    decides=True,
    outputs=_NAMES,
    recognize=_recognize,
    obstacle=lambda model, tensors: wrong_shape(
        tensors, 3, 5, "scores of classes for each pixel (samples, classes, height, width)"
    ),
)
