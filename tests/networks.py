"""Small networks for the tests, written as strangers write them: functional code, in-place additions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CifarBlock(nn.Module):
    """Post-activation block of He et al. 2015 with shortcut A, functional relu and an in-place addition."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.changes = stride != 1 or width_in != width
        self.pad = (width - width_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x
        if self.changes:
            shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad), "constant", 0)
        out += shortcut
        return F.relu(out)


class CifarResNet(nn.Module):
    """ResNet-(6n+2) for 32x32 images; the network behind the third-party weights the real runs use."""

    def __init__(self, n: int = 1, classes: int = 10, widths: tuple[int, int, int] = (16, 32, 64)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = self._stage(widths[0], widths[0], n, 1)
        self.layer2 = self._stage(widths[0], widths[1], n, 2)
        self.layer3 = self._stage(widths[1], widths[2], n, 2)
        self.linear = nn.Linear(widths[2], classes)

    @staticmethod
    def _stage(width_in: int, width: int, n: int, stride: int) -> nn.Sequential:
        blocks = [CifarBlock(width_in, width, stride)]
        blocks += [CifarBlock(width, width, 1) for _ in range(n - 1)]
        return nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(out.mean(dim=(2, 3)))


def resnet20() -> nn.Module:
    """A factory without arguments, as `FILE.py:FUNCTION` wants it."""
    return CifarResNet(3)


def resnet56() -> nn.Module:
    """ResNet-56."""
    return CifarResNet(9)


class PreactBlock(nn.Module):
    """Pre-activation block that ends in a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))


class PreactNet(nn.Module):
    """Pre-activation chain in a ModuleList."""

    def __init__(self, width: int = 8, depth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.ModuleList(PreactBlock(width) for _ in range(depth))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(F.relu(x).mean(dim=(2, 3)))


class NumberedNet(nn.Module):
    """Blocks as numbered attributes, with a tanh-GELU whose inner additions are not residual."""

    class Block(nn.Module):
        """Layer norm, MLP, addition."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(width)
            self.fc1 = nn.Linear(width, 2 * width)
            self.fc2 = nn.Linear(2 * width, width)

        def forward(self, x: Tensor) -> Tensor:
            h = self.fc1(self.norm(x))
            h = 0.5 * h * (1 + torch.tanh(0.797884 * (h + 0.044715 * h**3)))
            return torch.add(self.fc2(h), x)

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.block1 = self.Block(width)
        self.block2 = self.Block(width)
        self.block3 = self.Block(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block3(self.block2(self.block1(self.embed(x)))))


class SharedNet(nn.Module):
    """One block is called twice, others once."""

    def __init__(self) -> None:
        super().__init__()
        self.first = PreactBlock(4)
        shared = PreactBlock(4)
        self.blocks = nn.Sequential(shared, PreactBlock(4), shared, PreactBlock(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.first(x)).mean(dim=(2, 3)))


class PlainNet(nn.Module):
    """A VGG-like chain without any shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean(dim=(2, 3)))


class PostNormNet(nn.Module):
    """Transformer encoder layers of torch itself, norm after the addition."""

    def __init__(self, width: int = 8, depth: int = 3) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(dim=1))


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode with batch norms that do something."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
            with torch.no_grad():
                module.weight.copy_(0.5 + torch.rand(module.num_features, generator=generator))
                module.bias.copy_(0.1 * torch.randn(module.num_features, generator=generator))
    return model.eval()
