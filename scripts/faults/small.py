"""The networks of the faults, and a clock for them: so small that a whole command takes about a second."""

import torch
from torch import nn

from shoal.sources.builtin_networks import DigitsResNet


def _random(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return DigitsResNet(depth=2, widths=(4, 8, 8)).eval()


def network() -> nn.Module:
    """Six blocks with random weights, always the same."""
    return _random(0)


def teacher() -> nn.Module:
    """The same structure with other weights."""
    return _random(1)


def milliseconds(module: nn.Module, shape: tuple[int, ...]) -> float:
    """A latency that no other process can disturb: two runs must choose the same plan."""
    return 1e-3 * (1 + sum(parameter.numel() for parameter in module.parameters()))
