"""Rows for a regression: k x k neighbourhoods of an input beside the outputs at the same positions."""

from collections.abc import Sequence

import torch
from torch import Tensor


def positions_of(shape: Sequence[int], most: int, generator: torch.Generator) -> Tensor:
    """Up to `most` positions of an output grid (H, W), drawn without repetition; (positions, 2)."""
    height, width = shape
    flat = torch.randperm(height * width, generator=generator)[:most]
    return torch.stack([flat // width, flat % width], dim=1)


def patches(x: Tensor, positions: Tensor, *, kernel: int, stride: int, dilation: int = 1) -> Tensor:
    """The neighbourhood of each output position in `x`, zero-padded as a convolution that keeps the size.

    Args:
        x: (batch, channels, height, width).
        positions: (positions, 2) in the grid of the output.
        kernel: k.
        stride: of the convolution.
        dilation: of the convolution.

    Returns:
        (batch * positions, channels * k * k), in the order of a convolution's flattened weight.
    """
    half = dilation * (kernel // 2)
    padded = torch.nn.functional.pad(x, (half, half, half, half))
    offsets = dilation * torch.arange(kernel, device=x.device)
    rows = (positions[:, 0].to(x.device) * stride)[:, None, None] + offsets[None, :, None]
    columns = (positions[:, 1].to(x.device) * stride)[:, None, None] + offsets[None, None, :]
    found = padded[:, :, rows, columns]  # (batch, channels, positions, k, k)
    return found.permute(0, 2, 1, 3, 4).reshape(x.shape[0] * len(positions), -1)


def picked(y: Tensor, positions: Tensor) -> Tensor:
    """The outputs at the positions: (batch, channels, H, W) to (batch * positions, channels)."""
    found = y[:, :, positions[:, 0].to(y.device), positions[:, 1].to(y.device)]
    return found.permute(0, 2, 1).reshape(-1, y.shape[1])
