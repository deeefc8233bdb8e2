"""The weights averaged over the latest part of a run: better than those of any single step.

Source: Polyak averaging, as in Izmailov et al. 2018, arXiv:1803.05407, with exponentially falling weights. The window
grows with the run, so that nobody has to know how many steps a budget of time allows.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from shoal.preserve import copied

_WINDOW = 0.1  # of the steps so far
_PREFIX, _STEPS = "average.", "averages"
_STATISTICS = ("running_mean", "running_var")


class WeightAverage:
    """The average of a network that learns, statistics of batch norms included.

    Any other buffer is copied as it is: a mask of minus infinities has no average.

    Args:
        model: its weights are the first to be averaged; it is copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self.network = copied(model).requires_grad_(requires_grad=False)
        self.steps = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Include the weights after a step; nothing waits for the device."""
        share = 1 / (1 + _WINDOW * self.steps)
        by_dtype: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
        for average, current in _averaged(self.network, model):
            by_dtype.setdefault(average.dtype, []).append((average, current))
        for pairs in by_dtype.values():
            torch._foreach_lerp_([average for average, _ in pairs], [current for _, current in pairs], share)
        for average_module, module in zip(self.network.modules(), model.modules(), strict=True):
            _copy_buffers_(average_module, module)
        self.steps += 1

    def tensors(self) -> dict[str, Tensor]:
        """All that `load` needs."""
        state = self.network.state_dict().items()
        tensors = {f"{_PREFIX}{name}": value for name, value in state if isinstance(value, Tensor)}
        return {**tensors, _STEPS: torch.tensor(self.steps)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
        state = {name.removeprefix(_PREFIX): value for name, value in tensors.items() if name.startswith(_PREFIX)}
        self.network.load_state_dict(state, strict=False)  # what a module keeps besides tensors is not in it
        self.steps = int(tensors[_STEPS])


def _averaged(average: nn.Module, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Averages with their current values: the weights that learn, and the statistics of batch norms."""
    for parameter, current in zip(average.parameters(), model.parameters(), strict=True):
        if current.requires_grad:
            yield parameter, current
    for norm, module in zip(average.modules(), model.modules(), strict=True):
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None:
            yield from ((getattr(norm, name), getattr(module, name)) for name in _STATISTICS)


def _copy_buffers_(average: nn.Module, module: nn.Module) -> None:
    """The buffers without an average; some networks replace theirs by others of another size."""
    is_norm = isinstance(average, nn.modules.batchnorm._BatchNorm)
    for name, value in module.named_buffers(recurse=False):
        if is_norm and name in _STATISTICS:
            continue
        buffer = getattr(average, name, None)
        if isinstance(buffer, Tensor) and buffer.shape == value.shape and buffer.dtype == value.dtype:
            buffer.copy_(value)
        else:
            setattr(average, name, value.clone())
