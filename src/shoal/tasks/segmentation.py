"""Segmentation: a class for every pixel."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.batches import Batch
from shoal.measure.output_reading import Expectation
from shoal.outputs import Outputs, read_outputs
from shoal.tasks.task import Metric, Reference, Row, Task, main_tensor, module_names, wrong_shape

_NAMES = ("out", "logits")
_QUERIES = frozenset(["class_queries_logits", "masks_queries_logits"])
_VOID = (-100, 255)  # labels that say nothing: torch's, and that of the VOC and ADE20K data sets


def _scores(output: Any) -> Tensor:
    """Scores of classes for each pixel; of a network that answers by queries, those that it draws its map by.

    Source: Cheng et al. 2021, Per-pixel classification is not all you need, section 3.4 (semantic inference).
    """
    tensors = read_outputs(output).tensors
    if tensors.keys() >= _QUERIES:
        classes, masks = (tensors[name].detach().cpu().float() for name in sorted(_QUERIES))
        # The last class stands for no object.
        return torch.einsum("bqc,bqhw->bchw", classes.softmax(dim=-1)[..., :-1], masks.sigmoid())
    return main_tensor(output, *_NAMES).detach().cpu().float()


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
    """For each image how many pixels of each true class got which class, (classes, classes)."""
    scores = _scores(output)
    labels = _classes(reference.value) if reference.against == "labels" else None
    target = _scores(reference.value).argmax(dim=1) if labels is None else labels
    if labels is not None and labels.shape[-2:] != scores.shape[-2:]:  # some answer at a quarter of the resolution
        scores = F.interpolate(scores, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    answer, classes = scores.argmax(dim=1), int(scores.shape[1])
    rows = []
    for truth, seen in zip(target.reshape(batch.size, -1), answer.reshape(batch.size, -1), strict=True):
        counted = torch.ones_like(truth, dtype=torch.bool)
        for label in _VOID:
            counted &= truth != label if label < 0 or label >= classes else counted
        cells = truth[counted] * classes + seen[counted]
        rows.append(torch.bincount(cells, minlength=classes * classes).reshape(classes, classes).double().numpy())
    return rows


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
    for label in _VOID:
        counted &= classes != label
    known = classes[counted]  # none in an image where no pixel has a class: it adds nothing, and is no misfit
    return scores.dim() == 4 and bool(((known >= 0) & (known < scores.shape[1])).all())


def _recognize(model: nn.Module, outputs: Outputs, labels: Tensor | None) -> str | None:
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
        Metric("miou", "mIoU", _confusions, _miou, "%", fits=_fits, perfect=1.0, bounded=True),
        Metric("pixel_accuracy", "Pixel accuracy", _confusions, _accuracy, "%", fits=_fits, perfect=1.0, bounded=True),
    ),
    Expectation("segmentation", "classes", axis=1, names=("", "out", "aux", "logits")),
    decides=True,
    outputs=_NAMES,
    recognize=_recognize,
    obstacle=lambda model, tensors: wrong_shape(
        tensors, 3, 5, "scores of classes for each pixel (samples, classes, height, width)", width=2
    ),
)
