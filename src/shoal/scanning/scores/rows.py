"""Which axis of a stream holds the channels, and a few of its positions as rows."""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

_ROWS = 1024  # positions of one mini-batch, at least one a sample
_WIDTH = 256  # channels beyond which rows are projected

_FIRST = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)


def channel_axis(stream: Tensor, branch: list[nn.Module]) -> int:
    """The axis of the channels: 1 or -1.

    The first module of the branch that is unmistakable decides (a convolution reads axis 1, a linear map the last one),
    since the shape alone cannot tell (B, C, H, W) from (B, H, W, C); else it is the last of up to three axes, and
    the second of more.
    """
    if stream.dim() == 2:
        return -1
    for module in branch:
        if isinstance(module, _FIRST) and _width(module) == stream.shape[1] and _spatial(module, stream):
            return 1
        if isinstance(module, nn.Linear) and module.in_features == stream.shape[-1]:
            return -1
        # timm's LayerNorm2d is a LayerNorm that normalises axis 1 of (B, C, H, W).
        if isinstance(module, nn.LayerNorm) and not type(module).__name__.endswith("2d"):
            return -1
    return -1 if stream.dim() < 4 else 1


def _width(module: nn.Module) -> int:
    for name in ("in_channels", "num_features", "num_channels"):
        if hasattr(module, name):
            return int(getattr(module, name))
    return -1


def _spatial(module: nn.Module, stream: Tensor) -> bool:
    # A convolution over two axes in a branch on (batch, tokens, channels) works on a reshaped stream.
    kernel = getattr(module, "kernel_size", None)
    return kernel is None or stream.dim() == len(kernel) + 2


def channels_last(stream: Tensor, axis: int) -> Tensor:
    """The stream as (samples, positions, channels), a view where that is possible."""
    return stream.movedim(axis, -1).reshape(stream.shape[0], -1, stream.shape[axis])


def some_positions(samples: int, positions: int, turn: int, device: torch.device) -> Tensor:
    """Indices of the positions whose rows are taken in mini-batch number `turn`; the same ones in every run."""
    count = min(positions, max(1, _ROWS // samples))
    if count == positions:
        return torch.arange(positions, device=device)
    generator = torch.Generator().manual_seed(turn)
    return torch.randperm(positions, generator=generator)[:count].to(device)


def narrowed(rows: Tensor) -> Tensor:
    """Rows in float64 of at most `_WIDTH` columns: wider ones are turned at random and cut, all of a width alike.

    So moments stay cheap on wide streams, and a block that changes nothing still changes nothing.
    """
    rows = rows.detach().double()
    width = rows.shape[1]
    return rows if width <= _WIDTH else rows @ _projection(width).to(rows)


@lru_cache(maxsize=8)
def _projection(width: int) -> Tensor:
    generator = torch.Generator().manual_seed(width)
    turned, _ = torch.linalg.qr(torch.randn(width, _WIDTH, generator=generator, dtype=torch.float64))
    return turned * math.sqrt(width / _WIDTH)
