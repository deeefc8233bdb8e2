"""Optimizers whose whole state is tensors by parameter name, gradient clipping, and the learning-rate schedule."""

import math
from collections.abc import Callable, Collection, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shoal.errors import SurgeryError

_PREFIX = "optimizer."
# Weights that are zero must be able to move: the least norm of a row, and of a number in a vector.
_MIN_ROW_NORM, _MIN_VALUE_NORM = 1e-3, 0.05

OptimizerFactory = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


def cosine_lr(spent: float, peak: float, warm_up: float, *, floor: float = 0.0, delayed: bool = True) -> float:
    """The learning rate over the budget: linear warm-up, then along a cosine to zero.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, one period; the warm-up of Goyal et al. 2017,
    arXiv:1706.02677.

    Args:
        spent: the share of the budget that is used up, 0..1.
        peak: the highest rate.
        warm_up: the share in which the rate rises.
        floor: the lowest rate of the warm-up.
        delayed: the cosine starts after the warm-up; False: it spans the whole budget, and the warm-up cuts into it.
    """
    spent = min(max(spent, 0.0), 1.0)
    if spent < warm_up:
        return max(floor, peak * spent / warm_up)
    start = warm_up if delayed else 0.0
    return peak * (1 + math.cos(math.pi * (spent - start) / (1 - start))) / 2


def optimizer_for(model: nn.Module) -> Literal["sgd", "adamw"]:
    """SGD for networks with batch norms or convolutions, AdamW for others (transformers)."""
    convolutional = (nn.modules.batchnorm._BatchNorm, nn.modules.conv._ConvNd)
    layer_norms = (nn.LayerNorm, nn.RMSNorm)
    modules = list(model.modules())
    if any(isinstance(module, layer_norms) for module in modules):
        return "adamw"
    return "sgd" if any(isinstance(module, convolutional) for module in modules) else "adamw"


def adaptive_clip_(parameters: Iterable[Tensor], max_ratio: float) -> None:
    """Limit each gradient to `max_ratio` times the norm of its weights, in place; a row (one output) at a time.

    A norm over all gradients at once is no help here: the weights of a block that does next to nothing are tiny, its
    batch norm blows its gradient up, and a single step that is harmless anywhere else destroys it.

    Source: adaptive gradient clipping, Brock et al. 2021, arXiv:2102.06171, section 4.1, there with 0.01 to 0.16.
    """
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        weight_norm, gradient_norm = _row_norms(parameter.detach()), _row_norms(gradient)
        smallest = _MIN_ROW_NORM if parameter.dim() > 1 else _MIN_VALUE_NORM * parameter.numel() ** 0.5
        gradient.mul_((max_ratio * weight_norm.clamp(min=smallest) / gradient_norm.clamp(min=1e-12)).clamp(max=1))


def _row_norms(values: Tensor) -> Tensor:
    """Of each row of a matrix or kernel; of a vector as a whole."""
    if values.dim() < 2:
        return values.norm()
    return values.flatten(1).norm(dim=1).view(-1, *(1 for _ in values.shape[1:]))


class ResumableOptimizer:
    """A torch optimizer whose rate and decay are given with each step, and whose state is tensors by parameter name.

    Args:
        module: whose parameters learn; those that need no gradient are left alone.
        decayed: the parameters that weight decay reaches.
        factory: makes the optimizer of parameter groups.

    Raises:
        SurgeryError: no parameter can learn.
    """

    def __init__(self, module: nn.Module, decayed: Collection[nn.Parameter], factory: OptimizerFactory) -> None:
        self.module = module
        trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not trainable:
            raise SurgeryError("no parameter of the student needs a gradient", "Call student.requires_grad_().")
        reached = set(decayed)
        parts = (
            ([parameter for parameter in trainable if parameter in reached], True),
            ([parameter for parameter in trainable if parameter not in reached], False),
        )
        self.optimizer = factory([{"params": part, "decays": decays} for part, decays in parts if part])

    def step(self, lr: float, decay: float = 0.0) -> None:
        """One step on the gradients, which are used up."""
        for group in self.optimizer.param_groups:
            group["lr"], group["weight_decay"] = lr, decay if group["decays"] else 0.0
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def drop_stale_params(self) -> None:
        """Drop parameters, and their state, that the module no longer has."""
        present = set(self.module.parameters())
        for group in self.optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if parameter in present]
        for parameter in [parameter for parameter in self.optimizer.state if parameter not in present]:
            del self.optimizer.state[parameter]

    def tensors(self) -> dict[str, Tensor]:
        """The state by parameter and name, as safetensors can hold it."""
        return {
            f"{_PREFIX}{key}.{name}": value
            for name, parameter in self.module.named_parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
        parameters = dict(self.module.named_parameters())
        for full_name, value in tensors.items():
            if full_name.startswith(_PREFIX):
                key, _, name = full_name.removeprefix(_PREFIX).partition(".")
                # AdamW counts its steps in a tensor without axes, which stays on the CPU.
                device = parameters[name].device if value.dim() else "cpu"
                self.optimizer.state[parameters[name]][key] = value.clone().to(device)


class ClippedOptimizer(ResumableOptimizer):
    """SGD or AdamW with adaptive gradient clipping; weight decay reaches the matrices.

    Args:
        model: whose parameters learn.
        name: 'sgd' (momentum 0.9, Nesterov) or 'adamw'.
        decay: of parameters with two axes or more.
        clip: see `adaptive_clip_`; 0 for no limit.

    Raises:
        SurgeryError: no parameter can learn.
    """

    def __init__(self, model: nn.Module, name: str, decay: float, clip: float) -> None:
        def factory(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
            if name == "sgd":
                return torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
            return torch.optim.AdamW(groups, lr=0.1)

        super().__init__(model, {parameter for parameter in model.parameters() if parameter.dim() >= 2}, factory)
        self.decay, self.clip = decay, clip

    def step(self, lr: float, decay: float | None = None) -> None:
        """One step on the gradients, clipped; they are used up."""
        if self.clip:
            adaptive_clip_(self.module.parameters(), self.clip)
        super().step(lr, self.decay if decay is None else decay)
