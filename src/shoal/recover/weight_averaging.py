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
        """Take in the weights after a step; nothing waits for the device."""
        share = 1 / (1 + _WINDOW * self.steps)
        by_dtype: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
        for own, now in _averaged(self.network, model):
            by_dtype.setdefault(own.dtype, []).append((own, now))
        for pairs in by_dtype.values():
            torch._foreach_lerp_([own for own, _ in pairs], [now for _, now in pairs], share)
        for kept, moved in zip(self.network.modules(), model.modules(), strict=True):
            _copy_the_rest_(kept, moved)
        self.steps += 1

    def tensors(self) -> dict[str, Tensor]:
        """All that `load` needs."""
        state = self.network.state_dict().items()
        found = {f"{_PREFIX}{name}": one for name, one in state if isinstance(one, Tensor)}
        return {**found, _STEPS: torch.tensor(self.steps)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `tensors` returned."""
        own = {name.removeprefix(_PREFIX): one for name, one in tensors.items() if name.startswith(_PREFIX)}
        self.network.load_state_dict(own, strict=False)  # what a module keeps besides tensors is not in it
        self.steps = int(tensors[_STEPS])


def _averaged(average: nn.Module, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """What has an average, and what it is now: the weights that learn, and the statistics of batch norms."""
    for own, now in zip(average.parameters(), model.parameters(), strict=True):
        if now.requires_grad:
            yield own, now
    for one, other in zip(average.modules(), model.modules(), strict=True):
        if isinstance(one, nn.modules.batchnorm._BatchNorm) and one.running_mean is not None:
            yield from ((getattr(one, name), getattr(other, name)) for name in _STATISTICS)


def _copy_the_rest_(own: nn.Module, now: nn.Module) -> None:
    """The buffers without an average; some networks set theirs anew, in another size."""
    normed = isinstance(own, nn.modules.batchnorm._BatchNorm)
    for name, value in now.named_buffers(recurse=False):
        if normed and name in _STATISTICS:
            continue
        before = getattr(own, name, None)
        if isinstance(before, Tensor) and before.shape == value.shape and before.dtype == value.dtype:
            before.copy_(value)
        else:
            setattr(own, name, value.clone())
