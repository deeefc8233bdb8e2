"""Embeddings: the direction of a vector is what counts, and which vectors are its neighbours."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shoal.batches import IGNORED, Batch
from shoal.measure.output_reading import Expectation
from shoal.outputs import Outputs
from shoal.tasks.task import Metric, Reference, Row, Task, main_tensor, module_names, wrong_shape

_NAMES = ("sentence_embedding", "embeds", "image_embeds", "text_embeds", "pooler_output")
_NEIGHBOURS = 10


def _vectors(output: Any, batch: Batch) -> Tensor:
    vectors = main_tensor(output, *_NAMES).detach().cpu().double().reshape(batch.size, -1)
    return torch.nn.functional.normalize(vectors, dim=1)


def _cosines(output: Any, reference: Reference, batch: Batch) -> list[Row]:
    """As damage has it: a vector of zeros has no direction, and is at 1 to another one, at 0 to all others."""
    vectors, others = _vectors(output, batch), _vectors(reference.value, batch)
    both_zero = (vectors == 0).all(dim=1) & (others == 0).all(dim=1)
    return torch.where(both_zero, 1.0, (vectors * others).sum(1)).tolist()


def _pairs(output: Any, reference: Reference, batch: Batch) -> list[Row]:
    """The vector of each sample, and that of the original, or its label."""
    vectors = _vectors(output, batch).numpy()
    if reference.against == "labels":
        return list(zip(vectors, reference.value.detach().cpu().reshape(batch.size).tolist(), strict=True))
    return list(zip(vectors, _vectors(reference.value, batch).numpy(), strict=True))


def _neighbour_hits(rows: Sequence[Row]) -> list[Row]:
    """The share of the nearest ten that are so by the original's vectors, or whether the nearest has the same label.

    A single sample has no neighbour, and NaN.
    """
    similarity = _similarity(np.stack([vector for vector, _ in rows]))
    if len(rows) < 2:
        return [float("nan") for _ in rows]
    nearest = similarity.argmax(axis=1)
    if np.ndim(rows[0][1]) == 0:
        labels = np.array([label for _, label in rows])
        return (labels[nearest] == labels).astype(float).tolist()
    expected = np.argsort(-_similarity(np.stack([vector for _, vector in rows])), axis=1)[:, :_NEIGHBOURS]
    overlap = np.argsort(-similarity, axis=1)[:, :_NEIGHBOURS]
    k = min(_NEIGHBOURS, len(rows) - 1)
    return [
        len({*mine[:k].tolist()} & {*theirs[:k].tolist()}) / k for mine, theirs in zip(overlap, expected, strict=True)
    ]


def _similarity(vectors: np.ndarray) -> np.ndarray:
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    return similarity


def _labelled(output: Any, labels: Any) -> bool:
    """Class indices, one a sample: a neighbour of the same class is right. What has no class (-100) is like nothing."""
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.numel() != len(labels):
        return False
    return not bool((labels == IGNORED).any())


def _mean(rows: Sequence[Row]) -> float:
    return float(np.mean(rows))


def _recognize(model: nn.Module, outputs: Outputs, labels: Tensor | None) -> str | None:
    for name in module_names(model):
        if name.startswith("sentence_transformers."):
            return "it is a sentence encoder of sentence-transformers"
        if name.endswith(("ModelWithProjection",)):
            return f"{name.rsplit('.', 1)[-1]} returns embeddings"
    return None


EMBEDDING = Task(
    "embedding",
    (
        Metric(
            "nearest_label",
            "Nearest neighbour of the same label",
            _pairs,
            _mean,
            "%",
            against="labels",
            fits=_labelled,
            prepare=_neighbour_hits,
            bounded=True,
        ),
        Metric(
            "neighbours",
            "Shared nearest neighbours (10)",
            _pairs,
            _mean,
            "%",
            against="original",
            perfect=1.0,
            prepare=_neighbour_hits,
            bounded=True,
        ),
        Metric("cosine", "Cosine with the original", _cosines, _mean, "%", against="original", perfect=1.0),
    ),
    Expectation("embedding", "direction", names=("", *_NAMES)),
    decides=True,
    outputs=_NAMES,
    recognize=_recognize,
    obstacle=lambda model, tensors: wrong_shape(tensors, 2, 5, "vectors (samples, values)", width=2),
)
