"""Regression: numbers to be predicted, of any shape."""

from typing import Any

import numpy as np
from torch import Tensor, nn

from shoal.batches import Batch
from shoal.measure.output_reading import Expectation, squared_error
from shoal.outputs import Outputs
from shoal.tasks.task import Metric, Reference, Row, Task, main_tensor, module_names

_NAMES = ("logits", "predicted_depth", "prediction_outputs")


def _fits(output: Any, labels: Any) -> bool:
    tensor = main_tensor(output, *_NAMES)
    return isinstance(labels, Tensor) and labels.is_floating_point() and labels.numel() == tensor.numel()


def _rows(output: Any, reference: Reference, batch: Batch) -> list[Row]:
    """Squared error, and the sum and square of the reference, each the mean over the elements of a sample."""
    values = main_tensor(output, *_NAMES).detach().cpu().double().reshape(batch.size, -1)
    target = reference.value if reference.against == "labels" else main_tensor(reference.value, *_NAMES)
    target = target.detach().cpu().double().reshape(batch.size, -1)
    errors = squared_error(target, values)
    return list(np.stack([errors.numpy(), target.mean(1).numpy(), target.square().mean(1).numpy()], axis=1))


def _rmse(rows: Any) -> float:
    return float(np.sqrt(np.mean([row[0] for row in rows])))


def _r2(rows: Any) -> float:
    table = np.asarray(rows)
    variance = table[:, 2].mean() - table[:, 1].mean() ** 2
    return float(1 - table[:, 0].mean() / variance) if variance > 0 else float("nan")


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
    shapes = [tensor.shape for tensor in outputs.floating.values()]
    if labels is not None and labels.is_floating_point() and len(shapes) == 1 and labels.shape == shapes[0]:
        return "the targets are numbers of the output's shape"
    return None


REGRESSION = Task(
    "regression",
    (
        Metric("r2", "R²", _rows, _r2, "%", fits=_fits, perfect=1.0),
        Metric("rmse", "RMSE", _rows, _rmse, better="lower", fits=_fits, perfect=0.0),
    ),
    Expectation("regression", "values"),
    outputs=_NAMES,
    recognize=_recognize,
)
