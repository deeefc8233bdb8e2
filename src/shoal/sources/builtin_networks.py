"""The networks that ship with Shoal: both are pre-activation ResNets (He et al. 2016, arXiv:1603.05027).

`DigitsResNet`, for 8x8 digits, comes trained and is deeper than it needs to be. `CifarPreactResNet`, for 32x32 images,
is that of the epsilon-ResNet paper (Yu, Yu, Ramalingam 2018, arXiv:1804.01661): 6n + 2 layers, three stages of n blocks
with 16, 32 and 64 channels; where the shape changes the shortcut averages 2x2 pixels and fills the new channels with
zeros, so that it has no weights.
"""

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from shoal.errors import SpecError, WeightsError

WEIGHTS = Path(__file__).with_name("digits_resnet.safetensors")
"""The trained weights that ship with Shoal; `digits_resnet.json` records how they were trained."""


class DigitsBlock(nn.Module):
    """One pre-activation block: s(x) + conv2(relu(bn2(conv1(relu(bn1(x)))))).

    The shortcut s is the identity, or average pooling and a 1x1 convolution where the shape changes.

    Args:
        channels: of the input, shape (batch, channels, height, width).
        width: channels of the output, shape (batch, width, height / stride, width / stride).
        stride: 1 or 2.
    """

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            projection = nn.Conv2d(channels, width, 1, bias=False)
            self.shortcut = nn.Sequential(nn.AvgPool2d(stride), projection)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output for `x`."""
        branch = self.conv1(F.relu(self.bn1(x)))
        branch = self.conv2(F.relu(self.bn2(branch)))
        return self.shortcut(x) + branch


class DigitsResNet(nn.Module):
    """Three stages of pre-activation blocks between a convolution and a linear head.

    Input: float tensor of shape (batch, 1, 8, 8), normalised as the data source `digits` does.
    Output: logits of shape (batch, classes).

    Args:
        depth: blocks in each stage.
        widths: channels of each stage; the first block of every stage but the first halves height and width.
        classes: how many.
    """

    def __init__(self, depth: int = 9, widths: tuple[int, ...] = (8, 16, 32), classes: int = 10) -> None:
        super().__init__()
        self.num_classes = classes
        self.stem = nn.Conv2d(1, widths[0], 3, padding=1, bias=False)
        channels = widths[0]
        stages = []
        for number, width in enumerate(widths):
            first = DigitsBlock(channels, width, stride=1 if number == 0 else 2)
            stages.append(nn.Sequential(first, *(DigitsBlock(width, width) for _ in range(depth - 1))))
            channels = width
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits for images."""
        x = F.relu(self.norm(self.stages(self.stem(x))))
        return self.head(x.mean(dim=(2, 3)))


def digits_resnet(pretrained: bool = True) -> nn.Module:
    """The embedded network in eval mode, with the weights that ship with Shoal unless `pretrained` is False.

    Raises:
        WeightsError: the weights file is missing from the installation.
    """
    model = DigitsResNet()
    if pretrained:
        if not WEIGHTS.is_file():
            raise WeightsError(f"{WEIGHTS.name} is missing from this installation", "Install shoal again.")
        from safetensors.torch import load_file

        model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


_WIDTHS = (16, 32, 64)


class CifarPreactBlock(nn.Module):
    """One block: s(x) + conv2(relu(bn2(conv1(relu(bn1(x)))))).

    Args:
        channels: of the input, shape (batch, channels, height, width).
        width: channels of the output; twice as many halve height and width.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.added = width - channels
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride=2 if self.added else 1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output for `x`."""
        branch = self.conv1(F.relu(self.bn1(x)))
        branch = self.conv2(F.relu(self.bn2(branch)))
        if self.added:
            x = F.pad(F.avg_pool2d(x, 2), (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
        return x + branch


class CifarPreactResNet(nn.Module):
    """Three stages of pre-activation blocks between a convolution and a linear head.

    Input: (batch, 3, 32, 32), normalised. Output: logits of shape (batch, classes).

    Args:
        depth: layers, 6n + 2.
        classes: how many.
    """

    def __init__(self, depth: int, classes: int = 10) -> None:
        super().__init__()
        self.num_classes = classes
        self.stem = nn.Conv2d(3, _WIDTHS[0], 3, padding=1, bias=False)
        channels, stages = _WIDTHS[0], []
        for width in _WIDTHS:
            first = CifarPreactBlock(channels, width)
            stages.append(nn.Sequential(first, *(CifarPreactBlock(width, width) for _ in range((depth - 2) // 6 - 1))))
            channels = width
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits for images."""
        x = F.relu(self.norm(self.stages(self.stem(x))))
        return self.head(x.mean(dim=(2, 3)))


def cifar_preact_resnet(size: str) -> nn.Module:
    """The network for `DEPTH` or `DEPTH:CLASSES`, with random weights.

    Raises:
        SpecError: no depth of the form 6n + 2, or no number of classes.
    """
    depth, _, classes = size.partition(":")
    if not depth.isdigit() or int(depth) < 8 or (int(depth) - 2) % 6:
        raise SpecError(
            f"'{depth}' is no depth of a cifar-preact-resnet, expected 6n + 2 layers",
            "The paper has 110, 200, 302, 500 and 752; 20 and 32 are quick.",
        )
    if classes and not (classes.isdigit() and int(classes) >= 2):
        raise SpecError(f"'{classes}' is no number of classes", "Write cifar-preact-resnet:110:100.")
    return CifarPreactResNet(int(depth), int(classes or 10))
