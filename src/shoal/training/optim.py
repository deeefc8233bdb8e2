"""Steps of an optimizer whose whole state is tensors by name, with gradients clipped by the size of what they change.

A norm for all gradients at once is no help here: the weights of a block that does next to nothing are tiny, its batch
norm blows its gradient up, and a single step that is harmless anywhere else destroys it.
"""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from shoal.errors import SurgeryError

_PREFIX = "optimizer."
# Weights that are zero must be able to move: the least size of a row, and of a number in a vector.
_LEAST, _LEAST_OFFSET = 1e-3, 0.05


def optimizer_for(model: nn.Module) -> Literal["sgd", "adamw"]:
    """SGD for networks with batch norms or convolutions, AdamW for others (transformers)."""
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.conv._ConvNd)
    norms = (nn.LayerNorm, nn.RMSNorm)
    modules = list(model.modules())
    layered = any(isinstance(one, norms) for one in modules)
    return "sgd" if any(isinstance(one, kinds) for one in modules) and not layered else "adamw"


def adaptive_clip_(parameters: Iterable[Tensor], most: float) -> None:
    """Limit each gradient to `most` times the size of its weights, in place; a row (one output) at a time.

    Source: adaptive gradient clipping, Brock et al. 2021, arXiv:2102.06171, section 4.1, there with 0.01 to 0.16.
    """
    for one in parameters:
        if one.grad is None:
            continue
        size, own = _norm(one.detach()), _norm(one.grad)
        least = _LEAST if one.dim() > 1 else _LEAST_OFFSET * one.numel() ** 0.5
        one.grad.mul_((most * size.clamp(min=least) / own.clamp(min=1e-12)).clamp(max=1))


def _norm(values: Tensor) -> Tensor:
    """Of each row of a matrix or kernel; of a vector as a whole."""
    if values.dim() < 2:
        return values.norm()
    return values.flatten(1).norm(dim=1).view(-1, *(1 for _ in values.shape[1:]))


class ClippedOptimizer:
    """Gradient clipping, a step, and the optimizer's state as tensors.

    Args:
        model: whose parameters learn; those that need no gradient are left alone.
        kind: 'sgd' (momentum 0.9, Nesterov) or 'adamw'.
        decay: of parameters with two axes or more.
        clip: see `clip_`; 0 for no limit.

    Raises:
        SurgeryError: no parameter can learn.
    """

    def __init__(self, model: nn.Module, kind: str, decay: float, clip: float) -> None:
        self.names = {name: one for name, one in model.named_parameters() if one.requires_grad}
        if not self.names:
            raise SurgeryError("no parameter of the student needs a gradient", "Call student.requires_grad_().")
        matrices = [one for one in self.names.values() if one.dim() >= 2]
        others = [one for one in self.names.values() if one.dim() < 2]
        groups = [{"params": part, "weight_decay": rate} for part, rate in ((matrices, decay), (others, 0.0)) if part]
        self.clip = clip
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
            if kind == "sgd"
            else torch.optim.AdamW(groups, lr=0.1)
        )

    def step(self, rate: float) -> None:
        """One step on the gradients that are there, which are used up."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.clip:
            adaptive_clip_(self.names.values(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The state by parameter and name, as safetensors can hold it."""
        found = {}
        for name, parameter in self.names.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    found[f"{_PREFIX}{key}.{name}"] = value
        return found

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `tensors` returned."""
        for full, value in tensors.items():
            if full.startswith(_PREFIX):
                key, _, name = full.removeprefix(_PREFIX).partition(".")
                parameter = self.names[name]
                # AdamW counts its steps in a tensor without axes, which stays on the CPU.
                self.optimizer.state[parameter][key] = value.clone().to(parameter.device if value.dim() else "cpu")


def cosine_lr(spent: float, highest: float, warm_up: float) -> float:
    """The rate where `spent` (0..1) of the budget is used up; `warm_up` is the share in which it rises."""
    spent = min(max(spent, 0.0), 1.0)
    if spent < warm_up:
        return highest * spent / warm_up
    return highest * (1 + math.cos(math.pi * (spent - warm_up) / (1 - warm_up))) / 2
