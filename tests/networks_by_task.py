"""A small residual network for each task, with data."""

import torch
from torch import nn

from networks import PreactNet, randomised


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Trunk(nn.Module):
    """Four residual blocks at full resolution."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.ModuleList(Block(channels) for _ in range(4))
        self.head = nn.Conv2d(channels, out, 1)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(torch.relu(self.conv1(x)))


class Segmenter(nn.Module):
    """Scores of pixels under the name `out`, and an auxiliary head."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.aux = Trunk(6, 3), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return {"out": self.trunk(x), "aux": self.aux(x)}


class Restorer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk(6, 3)

    def forward(self, x):
        return x + 0.05 * self.trunk(x)


class Encoder(nn.Module):
    """An embedding of 8 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk(6, 8)

    def forward(self, x):
        return self.trunk(x).mean((2, 3))


class Denoiser(nn.Module):
    """Noise from a latent at a timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk(6, 3)

    def forward(self, sample, timestep):
        return self.trunk(sample * (1 + timestep[:, None, None, None] / 100))


def images(count: int, size: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=seeded(seed))


def made(network: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return randomised(network()).eval()


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return randomised(PreactNet(width=4, depth=4)).eval()
