"""Denoising networks of diffusion models: the noise, or the clean sample, in a latent at a timestep."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from shoal.batches import Batch
from shoal.measure.output_reading import Expectation, squared_error
from shoal.outputs import Outputs
from shoal.tasks.task import Metric, Reference, Row, Task, main_tensor, module_names

_NAMES = ("sample",)
_TIMESTEPS = ("timestep", "timesteps", "t")


def _rows(output: Any, reference: Reference, batch: Batch) -> list[Row]:
    """Squared error of the sample, and the reference's mean square: what a network that predicts nothing is off by."""
    values = main_tensor(output, *_NAMES).detach().cpu().double()
    target = reference.value if reference.against == "labels" else main_tensor(reference.value, *_NAMES)
    target = target.detach().cpu().double()
    values = values[:, : target.shape[1]]
    squares = target.square().flatten(1).mean(1)
    return list(np.stack([squared_error(target, values).numpy(), squares.numpy()], axis=1))


def _relative_error(rows: Sequence[Row]) -> float:
    """NaN where the reference is zero and the answer is not: the error is no share of nothing."""
    error, squares = np.sum(rows, axis=0)
    if squares > 0:
        return float(error / squares)
    return float("nan") if error > 0 else 0.0


def timesteps(batch: Batch) -> Sequence[str]:
    """The timestep of each sample; none where the mini-batch does not say."""
    steps = next((batch.kwargs[name] for name in _TIMESTEPS if isinstance(batch.kwargs.get(name), Tensor)), None)
    if steps is None and len(batch.args) > 1 and isinstance(batch.args[1], Tensor):
        steps = batch.args[1]
    if steps is None or steps.numel() != batch.size:
        return []
    return [f"{value:g}" for value in steps.detach().cpu().reshape(-1).tolist()]


def _fits(output: Any, labels: Any) -> bool:
    """Labels of the output's shape, or of its first half of channels: the second half is a learned variance."""
    shape = main_tensor(output, *_NAMES).shape
    if not isinstance(labels, Tensor) or not labels.is_floating_point() or labels.dim() < 2:
        return False
    return labels.shape in (shape, (shape[0], shape[1] // 2, *shape[2:]))


def _recognize(model: nn.Module, outputs: Outputs, labels: Tensor | None) -> str | None:
    name = next((name for name in module_names(model) if name.startswith("diffusers.models.")), None)
    return f"{name.rsplit('.', 1)[-1]} is a network of diffusers" if name and "autoencoder" not in name else None


DENOISING = Task(
    "denoising",
    (
        Metric(
            "relative_error",
            "Squared error, of the reference's mean square",
            _rows,
            _relative_error,
            "%",
            "lower",
            fits=_fits,
            perfect=0.0,
            chance=1.0,
            groups=timesteps,
            grouped_by="timestep",
        ),
    ),
    Expectation("denoising", "values", names=("", *_NAMES)),
    decides=True,
    outputs=_NAMES,
    recognize=_recognize,
)
