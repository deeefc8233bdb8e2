"""Regression: numbers to be predicted, of any shape."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shoal.batches import Batch
from shoal.measure.output_reading import Expectation
from shoal.outputs import Outputs
from shoal.tasks.task import Metric, Reference, Row, Task, are_yes_or_no, main_tensor, module_names

_NAMES = ("logits", "predicted_depth", "prediction_outputs")


def _fits(output: Any, labels: Any) -> bool:
    """Numbers of the output's shape, also without its axes of length 1, or with all axes of a sample in one."""
    if not isinstance(labels, Tensor) or labels.dtype == torch.bool or labels.is_complex():
        return False
    shapes = [[side for side in tensor.shape if side != 1] for tensor in (main_tensor(output, *_NAMES), labels)]
    return math.prod(shapes[0]) == math.prod(shapes[1]) and (shapes[0] == shapes[1] or len(shapes[0]) != len(shapes[1]))


def _rows(output: Any, reference: Reference, batch: Batch) -> list[Row]:
    """Squared error, reference and its square: of each number of a vector, else the mean over a sample's elements."""
    tensor = main_tensor(output, *_NAMES)
    values = tensor.detach().cpu().double().reshape(batch.size, -1)
    target = reference.value if reference.against == "labels" else main_tensor(reference.value, *_NAMES)
    target = target.detach().cpu().double().reshape(batch.size, -1)
    parts = [(target - values).square(), target, target.square()]
    if tensor.dim() > 2:
        parts = [part.mean(1, keepdim=True) for part in parts]
    return list(torch.stack(parts, dim=1).numpy())


def _rmse(rows: Any) -> float:
    return float(np.sqrt(np.mean([row[0] for row in rows])))


def _r2(rows: Any) -> float:
    """The mean over the numbers of a vector, as scikit-learn has it; one whose targets are all alike has none."""
    error, mean, square = np.mean(rows, axis=0)
    variance = square - mean**2
    known = variance > 1e-12 * square  # what rounding leaves of a constant is no variance
    return float((1 - error[known] / variance[known]).mean()) if known.any() else float("nan")


def _recognize(model: nn.Module, outputs: Outputs, labels: Tensor | None) -> str | None:
    name = next((name for name in module_names(model) if "DepthEstimation" in name), None)
    if name is not None:
        return f"{name.rsplit('.', 1)[-1]} predicts depth"
    name = next((name for name in module_names(model) if name.endswith("ForPrediction")), None)
    if name is not None:
        return f"{name.rsplit('.', 1)[-1]} predicts a series"
    config = getattr(model, "config", None)
    if getattr(config, "problem_type", None) == "regression":
        return "the network's configuration says regression"
    name = next((name for name in module_names(model) if name.endswith("ForSequenceClassification")), None)
    if name is not None and getattr(config, "num_labels", None) == 1:
        return f"{name.rsplit('.', 1)[-1]} returns a single number"
    shapes = [tensor.shape for tensor in outputs.floating.values()]
    if labels is None or not labels.is_floating_point() or len(shapes) != 1 or are_yes_or_no(labels):
        return None
    fits = labels.shape == shapes[0] or (*labels.shape, 1) == tuple(shapes[0])
    return "the targets are numbers of the output's shape" if fits else None


REGRESSION = Task(
    "regression",
    (
        Metric("r2", "R²", _rows, _r2, "%", fits=_fits, perfect=1.0, chance=0.0),
        Metric("rmse", "RMSE", _rows, _rmse, better="lower", fits=_fits, perfect=0.0),
    ),
    Expectation("regression", "values"),
    outputs=_NAMES,
    recognize=_recognize,
)
