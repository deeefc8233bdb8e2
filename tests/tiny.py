"""A network and data small enough for a whole command in a second; used as `FILE.py:FUNCTION`."""

import torch
from torch import nn

from networks import PlainNet, PreactNet, randomised


def network() -> nn.Module:
    """Six pre-activation blocks of which blocks.1 and blocks.4 do nothing."""
    torch.manual_seed(0)
    model = randomised(PreactNet(width=4, depth=6))
    for block in (model.blocks[1], model.blocks[4]):
        nn.init.zeros_(block.conv2.weight)
        nn.init.zeros_(block.conv2.bias)
    return model


def noisy() -> nn.Module:
    """The network with noise on its weights."""
    model = network()
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return model


def plain() -> nn.Module:
    """No residual block."""
    torch.manual_seed(0)
    return PlainNet()


def poisoned() -> nn.Module:
    """A NaN in one weight."""
    model = network()
    with torch.no_grad():
        model.blocks[2].conv1.weight[0, 0, 0, 0] = float("nan")
    return model


def raising() -> nn.Module:
    """A factory that fails."""
    raise ValueError("the disk ate my weights")


def _samples(count: int, seed: int) -> list[tuple[torch.Tensor, int]]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, 8, 8, generator=generator)
    with torch.no_grad():
        labels = network()(images).argmax(dim=1)
    return [(image, int(label)) for image, label in zip(images, labels, strict=True)]


def data() -> tuple[list[tuple[torch.Tensor, int]], list[tuple[torch.Tensor, int]]]:
    """Images labelled by the network itself."""
    return _samples(80, 1), _samples(60, 2)


def bad_labels() -> tuple[list[tuple[torch.Tensor, int]], list[tuple[torch.Tensor, int]]]:
    """A label no network of ten classes has."""
    return [(image, 77) for image, _ in _samples(40, 1)], [(image, 77) for image, _ in _samples(40, 2)]
