"""The weights averaged over the latest part of a run: better than those of any single step.

Source: Polyak averaging, as in Izmailov et al. 2018, arXiv:1803.05407, with exponentially falling weights. The window
grows with the run, so that nobody has to know how many steps a budget of time allows.
"""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

_WINDOW = 0.1  # of the steps so far


class Average:
    """The average of a network that learns, statistics of batch norms included.

    Args:
        model: its weights are the first to be averaged; it is copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self._averaged = AveragedModel(model, avg_fn=_moved, use_buffers=True)
        self._averaged.requires_grad_(False)

    @property
    def network(self) -> nn.Module:
        """A network with the averaged weights."""
        return self._averaged.module

    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step."""
        self._averaged.update_parameters(model)

    def tensors(self) -> dict[str, Tensor]:
        """All that `load` needs."""
        return {f"average.{name}": tensor for name, tensor in self._averaged.state_dict().items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `tensors` returned."""
        own = {name.removeprefix("average."): one for name, one in tensors.items() if name.startswith("average.")}
        self._averaged.load_state_dict(own)


def _moved(averaged: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
    if not averaged.is_floating_point():
        return current
    share = 1 / (1 + _WINDOW * float(steps))
    return torch.lerp(averaged, current, share)
