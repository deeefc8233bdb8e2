"""Rows for a regression: k x k neighbourhoods of an input, and the outputs at the same positions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Rows for each unknown of the map: some tens are enough, more cost time and change little.
ROWS_PER_UNKNOWN = 40


@dataclass(frozen=True)
class Window:
    """What a convolution reads for one position of its output."""

    kernel: int = 1
    stride: int = 1
    dilation: int = 1


class RowSampler:
    """Draws the rows of a linear map: its inputs at some positions of each sample, and the outputs there.

    Args:
        unknowns: of the map, for each output.
        samples: how many samples are to come.
        window: of a map on images (batch, channels, H, W); None where the features are in the last axis.
        rows_per_unknown: how many rows to draw, about.
        seed: of the positions.
    """

    def __init__(
        self,
        unknowns: int,
        samples: int,
        window: Window | None,
        rows_per_unknown: float = ROWS_PER_UNKNOWN,
        seed: int = 0,
    ) -> None:
        self.window = window
        self.per_sample = max(8, math.ceil(rows_per_unknown * unknowns / max(samples, 1)))
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, x: Tensor, ys: Sequence[Tensor], counted: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rows (n, unknowns) of `x` and (n, outputs) of all `ys` side by side, float64.

        Args:
            x: the inputs of the map.
            ys: what it should return, at each end.
            counted: which positions are no padding, (samples, positions); None where all are. Of windows all count.
        """
        if self.window is None:
            flat = x.reshape(-1, x.shape[-1])
            places = torch.arange(len(flat)) if counted is None else counted.reshape(-1).nonzero().squeeze(1).cpu()
            order = torch.randperm(len(places), generator=self.generator)[: self.per_sample * x.shape[0]]
            chosen = places[order].to(x.device)
            return flat[chosen].double(), torch.cat([y.reshape(-1, y.shape[-1])[chosen] for y in ys], dim=1).double()
        positions = sample_grid(ys[0].shape[2:], self.per_sample, self.generator)
        rows = extract_patches(x, positions, self.window)
        return rows.double(), torch.cat([gather_outputs(y, positions) for y in ys], dim=1).double()


def sample_grid(shape: Sequence[int], count: int, generator: torch.Generator) -> Tensor:
    """Up to `count` positions of an output grid (H, W), drawn without repetition; (positions, 2)."""
    height, width = shape
    flat = torch.randperm(height * width, generator=generator)[:count]
    return torch.stack([flat // width, flat % width], dim=1)


def extract_patches(x: Tensor, positions: Tensor, window: Window) -> Tensor:
    """The neighbourhood of each output position in `x`, zero-padded as a convolution that keeps the size.

    Args:
        x: (batch, channels, height, width).
        positions: (positions, 2) in the grid of the output.
        window: of the convolution.

    Returns:
        (batch * positions, channels * k * k), in the order of a convolution's flattened weight.
    """
    kernel, stride, dilation = window.kernel, window.stride, window.dilation
    half = dilation * (kernel // 2)
    padded = torch.nn.functional.pad(x, (half, half, half, half))
    offsets = dilation * torch.arange(kernel, device=x.device)
    rows = (positions[:, 0].to(x.device) * stride)[:, None, None] + offsets[None, :, None]
    columns = (positions[:, 1].to(x.device) * stride)[:, None, None] + offsets[None, None, :]
    patches = padded[:, :, rows, columns]  # (batch, channels, positions, k, k)
    return patches.permute(0, 2, 1, 3, 4).reshape(x.shape[0] * len(positions), -1)


def gather_outputs(y: Tensor, positions: Tensor) -> Tensor:
    """The outputs at the positions: (batch, channels, H, W) to (batch * positions, channels)."""
    outputs = y[:, :, positions[:, 0].to(y.device), positions[:, 1].to(y.device)]
    return outputs.permute(0, 2, 1).reshape(-1, y.shape[1])
