"""Classification: top-1, divergence and perplexity are measured for every network with class scores."""

from typing import Any

from torch import Tensor, nn

from shoal.measure.output_reading import Expectation, are_probabilities
from shoal.outputs import Outputs
from shoal.tasks.task import Task, module_names, wrong_shape

_HEADS = ("ForImageClassification", "ForSequenceClassification", "ForAudioClassification")


def _are_exclusive(config: Any) -> bool:
    """Whether a head of transformers has a score for each of several classes, of which one is right."""
    several = getattr(config, "num_labels", 2) > 1
    return several and getattr(config, "problem_type", None) in (None, "single_label_classification")


def _recognize(model: nn.Module, outputs: Outputs, labels: Tensor | None) -> str | None:
    for name in module_names(model):
        if name.endswith(_HEADS) and _are_exclusive(getattr(model, "config", None)):
            return f"{name.rsplit('.', 1)[-1]} returns scores of classes"
    scores = [tensor for tensor in outputs.floating.values() if tensor.dim() == 2 and tensor.shape[1] > 1]
    if labels is None or len(scores) != 1:
        return None
    if labels.shape == scores[0].shape and are_probabilities(labels):
        return "the labels are probabilities of its classes"
    if labels.is_floating_point() or labels.dim() != 1:
        return None
    fits = len(labels) == len(scores[0]) and int(labels.max()) < scores[0].shape[1]
    return "the labels are class indices that fit the output" if fits else None


CLASSIFICATION = Task(
    "classification",
    expectation=Expectation("classification", "classes"),
    outputs=("logits",),
    recognize=_recognize,
    obstacle=lambda model, tensors: wrong_shape(tensors, 2, 3, "scores of classes (samples, classes)"),
)
