"""Stochastic gradient descent that forgets the parameters of blocks that are gone."""

from collections.abc import Set

import torch
from torch import Tensor, nn

_MOMENTUM = "momentum_buffer"


class PrunableSGD:
    """SGD with momentum; decay reaches the matrices, and whatever ends a branch.

    Args:
        pair: the network, with its side head as the attribute `side`.
        decayed: the parameters of the network that decay; of the side head all matrices do.
        momentum: as in torch's SGD.
        nesterov: likewise.
    """

    def __init__(self, pair: nn.Module, decayed: Set[nn.Parameter], momentum: float, *, nesterov: bool) -> None:
        self.pair = pair
        known = set(pair.get_submodule("network").parameters())
        reached = [p for p in pair.parameters() if p in decayed or (p not in known and p.dim() >= 2)]
        others = [p for p in pair.parameters() if not any(p is one for one in reached)]
        groups = [{"params": part, "decays": flag} for part, flag in ((reached, True), (others, False)) if part]
        self.sgd = torch.optim.SGD(groups, lr=0.1, momentum=momentum, nesterov=nesterov)

    def step(self, rate: float, decay: float) -> None:
        """One step on the gradients that are there, which are used up."""
        for group in self.sgd.param_groups:
            group["lr"], group["weight_decay"] = rate, decay if group["decays"] else 0.0
        self.sgd.step()
        self.sgd.zero_grad(set_to_none=True)

    def forget_missing(self) -> None:
        """Drop parameters, and their momentum, that the network no longer has."""
        there = set(self.pair.parameters())
        for group in self.sgd.param_groups:
            group["params"] = [parameter for parameter in group["params"] if parameter in there]
        for parameter in [one for one in self.sgd.state if one not in there]:
            del self.sgd.state[parameter]

    def tensors(self) -> dict[str, Tensor]:
        """The momentum by name of the parameter."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.pair.named_parameters()}
        return {
            f"momentum.{names[parameter]}": state[_MOMENTUM]
            for parameter, state in self.sgd.state.items()
            if state.get(_MOMENTUM) is not None
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Load what `tensors` returned."""
        for name, parameter in self.pair.named_parameters():
            kept = tensors.get(f"momentum.{name}")
            if kept is not None:
                self.sgd.state[parameter][_MOMENTUM] = kept.to(parameter).clone()
