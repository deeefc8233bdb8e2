"""Detection: boxes of objects, of which there are more or fewer; damage is looked at before they are selected.

What a detector returns cannot be paired: a changed network finds other boxes. So while networks are compared, a
detector of torchvision returns what its boxes are selected from: the maps of its head for every anchor, and, of a
detector in two stages, the answers of its second stage about a fixed grid of regions. Its metric is that of its real
output. Detectors of transformers return a fixed number of boxes, which can be paired as they are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shoal.batches import Batch, call
from shoal.measure.output_reading import Expectation
from shoal.outputs import Outputs, read_outputs
from shoal.tasks.dense import USUAL, with_forward
from shoal.tasks.libraries import torchmetrics_class
from shoal.tasks.task import Metric, Reference, Row, Task, module_names

_TORCHVISION = "torchvision.models.detection."
_LEAST_SCORE = 0.5  # of the original's boxes, where they take the place of labels
_QUERIES = frozenset(["logits", "pred_boxes"])  # what detectors of transformers return of each query
_GRIDS = (1, 2, 4)  # regions a side: the whole image, its quarters, its sixteenths


def _dense_class(model: nn.Module) -> type[nn.Module] | None:
    """A class whose forward returns what boxes are selected from; None where the network is no detector we know."""
    if not any(name.startswith(_TORCHVISION) for name in module_names(model)):
        return None
    if not all(hasattr(model, part) for part in ("transform", "backbone")):
        return None
    if hasattr(model, "rpn") and hasattr(model, "roi_heads"):
        return with_forward(type(model), _two_stage_forward)
    return with_forward(type(model), _single_stage_forward) if hasattr(model, "head") else None


def _features(self: Any, images: Any) -> tuple[Any, Any, list[Tensor]]:
    images, _ = self.transform(list(images), None)
    features = self.backbone(images.tensors)
    features = {"0": features} if isinstance(features, Tensor) else features
    return images, features, list(features.values())


def _single_stage_forward(self: Any, images: Any, targets: Any = None) -> dict[str, Tensor]:
    """The head's scores and boxes for every anchor, (images, anchors, values)."""
    _, _, maps = _features(self, images)
    head: dict[str, Tensor] = self.head(maps)
    return head


def _two_stage_forward(self: Any, images: Any, targets: Any = None) -> dict[str, Tensor]:
    """The region network's maps, and the second stage's answers about a fixed grid of regions."""
    images, features, maps = _features(self, images)
    objectness, deltas = self.rpn.head(maps)
    dense = {f"objectness{level}": part for level, part in enumerate(objectness)}
    dense |= {f"deltas{level}": part for level, part in enumerate(deltas)}
    regions = [_grid(size, maps[0]) for size in images.image_sizes]
    return dense | _second_stage(self.roi_heads, features, regions, images.image_sizes)


def _second_stage(heads: Any, features: Any, regions: list[Tensor], sizes: Any) -> dict[str, Tensor]:
    def by_image(tensor: Tensor) -> Tensor:
        return tensor.reshape(len(regions), -1, *tensor.shape[1:])

    scores, boxes = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, regions, sizes)))
    dense = {"scores": by_image(scores), "boxes": by_image(boxes)}
    for name in ("mask", "keypoint"):
        pool, head, predictor = (getattr(heads, f"{name}_{part}", None) for part in ("roi_pool", "head", "predictor"))
        if pool is not None and head is not None and predictor is not None:
            dense[name] = by_image(predictor(head(pool(features, regions, sizes))))
    return dense


def _grid(size: tuple[int, int], like: Tensor) -> Tensor:
    """Boxes (x1, y1, x2, y2) of the whole image, its quarters and its sixteenths."""
    height, width = size
    boxes = [
        (width * column / side, height * row / side, width * (column + 1) / side, height * (row + 1) / side)
        for side in _GRIDS
        for row in range(side)
        for column in range(side)
    ]
    return torch.tensor(boxes, dtype=like.dtype, device=like.device)


def _detect(model: nn.Module, batch: Batch) -> Any:
    """The boxes that a network finds, as torchvision has them, in pixels."""
    output = call(model, batch)
    tensors = read_outputs(output).tensors
    if not tensors.keys() >= _QUERIES:
        return output
    logits = tensors["logits"]
    # Where there is one class more than the network knows, it stands for no object.
    has_none = logits.shape[-1] > int(getattr(getattr(model, "config", None), "num_labels", logits.shape[-1]))
    scores, labels = (logits.softmax(-1)[..., :-1] if has_none else logits.sigmoid()).max(-1)
    boxes = _corners(tensors["pred_boxes"]) * _sides(batch).to(logits.device)
    return [
        {"boxes": found, "scores": score, "labels": label}
        for found, score, label in zip(boxes, scores, labels, strict=True)
    ]


def _corners(boxes: Tensor) -> Tensor:
    """(x1, y1, x2, y2) of boxes given by their middle and size."""
    middle, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([middle - size / 2, middle + size / 2], dim=-1)


def _sides(batch: Batch) -> Tensor:
    """Width and height of the images, twice: what boxes in shares of an image are multiplied by."""
    height, width = next((tensor.shape[-2:] for tensor in batch.tensors if tensor.dim() >= 3), (1, 1))
    return torch.tensor([width, height, width, height], dtype=torch.float32)


def _truth(image: Any, sides: Tensor) -> dict[str, Tensor]:
    """The boxes of an annotation in pixels, their labels, and which are crowds.

    Those of transformers have other names, and the middle and size of a box in shares of the image.
    """
    boxes = image["boxes"].detach().cpu().float().reshape(-1, 4)  # no boxes at all are often a tensor of one axis
    boxes = _corners(boxes) * sides if "class_labels" in image else boxes
    labels = image.get("class_labels", image.get("labels")).detach().cpu().long()
    crowds = image.get("iscrowd")
    crowds = torch.zeros_like(labels) if crowds is None else crowds.detach().cpu().long()
    return {"boxes": boxes, "labels": labels, "iscrowd": crowds}


def _annotation_fault(annotations: Sequence[Any]) -> str | None:
    """Why annotations cannot be used, as torchvision or transformers has them."""
    for image in annotations:
        labels = image.get("class_labels", image.get("labels"))
        boxes = image.get("boxes")
        if not isinstance(boxes, Tensor) or not isinstance(labels, Tensor):
            return f"an annotation has {', '.join(map(str, image)) or 'nothing'}, expected the tensors boxes and labels"
        if boxes.numel() != 4 * len(labels) or labels.dim() != 1 or (boxes.numel() and boxes.shape[-1] != 4):
            return f"an annotation has boxes of shape {tuple(boxes.shape)} and labels of shape {tuple(labels.shape)}"
        if labels.is_floating_point() or not bool(torch.isfinite(boxes).all()):
            return "an annotation has " + ("NaN or Inf in a box" if not labels.is_floating_point() else "float labels")
        crowds = image.get("iscrowd", labels)
        if not isinstance(crowds, Tensor) or crowds.shape != labels.shape:
            return "an annotation has an iscrowd that is no tensor of one number for each of its labels"
        corners = _truth(image, torch.ones(4))["boxes"]
        if bool((corners[:, 2:] < corners[:, :2]).any()):
            return "an annotation has a box that ends before it begins; boxes are (x1, y1, x2, y2)"
    return None


def _obstacle(model: nn.Module, tensors: Mapping[str, Tensor]) -> str | None:
    if getattr(type(model), USUAL, None) is not None or any(name.endswith("boxes") for name in tensors):
        return None
    return f"it needs a network that returns boxes, and {type(model).__name__} returns none"


def _found(output: Any) -> list[dict[str, Tensor]]:
    keys = ("boxes", "scores", "labels")
    return [{key: image[key].detach().cpu() for key in keys} for image in output]


def _rows(output: Any, reference: Reference, batch: Batch) -> list[Row]:
    """For each image the boxes found, and the true ones, or those that the original is sure of."""
    if reference.against == "labels":
        truth = [_truth(image, _sides(batch)) for image in reference.value]
    else:
        truth = [
            {key: image[key][image["scores"] >= _LEAST_SCORE] for key in ("boxes", "labels")}
            for image in _found(reference.value)
        ]
    return list(zip(_found(output), truth, strict=True))


def _map(rows: Sequence[Row]) -> float:
    """COCO's mean average precision, IoU 0.50 to 0.95, by torchmetrics; NaN where there is nothing to find.

    What is found in a crowd counts neither for nor against a network.
    """
    if not any(len(truth["labels"]) > int(truth.get("iscrowd", torch.zeros(1)).sum()) for _, truth in rows):
        return float("nan")
    metric = torchmetrics_class("detection.mean_ap", "MeanAveragePrecision")()
    metric.update([found for found, _ in rows], [truth for _, truth in rows])
    return max(0.0, float(metric.compute()["map"]))


def _is_detection(output: Any, labels: Any) -> bool:
    return (
        isinstance(labels, Sequence)
        and not isinstance(labels, str)
        and all(isinstance(image, Mapping) and "boxes" in image for image in labels)
    )


def _recognize(model: nn.Module, outputs: Outputs, labels: Tensor | None) -> str | None:
    for name in module_names(model):
        if name.startswith(_TORCHVISION):
            return "it is a detector of torchvision"
        if name.endswith("ForObjectDetection"):
            return f"{name.rsplit('.', 1)[-1]} detects objects"
    return None


DETECTION = Task(
    "detection",
    (
        Metric(
            "map",
            "mAP",
            _rows,
            _map,
            "%",
            fits=_is_detection,
            perfect=1.0,
            respond=_detect,
            bounded=True,
            chance=0.0,
        ),
    ),
    Expectation("detection", "values"),
    decides=True,
    outputs=("logits", "pred_boxes"),
    recognize=_recognize,
    dense=_dense_class,
    obstacle=_obstacle,
    annotation_fault=_annotation_fault,
)
