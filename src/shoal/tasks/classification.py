"""Classification: top-1, divergence and perplexity are measured for every network with class scores."""

from torch import Tensor, nn

from shoal.measure.output_reading import Expectation
from shoal.outputs import Outputs
from shoal.tasks.task import Task, module_names, wrong_shape


def _recognize(model: nn.Module, outputs: Outputs, labels: Tensor | None) -> str | None:
    for name in module_names(model):
        if name.endswith(("ForImageClassification", "ForSequenceClassification", "ForAudioClassification")):
            return f"{name.rsplit('.', 1)[-1]} returns scores of classes"
    scores = [tensor for tensor in outputs.floating.values() if tensor.dim() == 2 and tensor.shape[1] > 1]
    if labels is None or labels.is_floating_point() or labels.dim() != 1 or len(scores) != 1:
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
