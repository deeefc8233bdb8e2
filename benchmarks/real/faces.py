"""dlib's face recognition, a ResNet of 14 blocks that returns 128 numbers: npm @vladmandic/face-api (MIT; weights CC0).

Faces: scikit-image's subset of Labeled Faces in the Wild, 25 pixels a side, enlarged (the network was made for 150).
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from packages import Rows, package_file
from torch import Tensor, nn

_SIDE, _MEAN = 150, (122.782, 117.001, 104.298)
_BLOCKS = (
    "conv32_1 conv32_2 conv32_3 conv64_down conv64_1 conv64_2 conv64_3 conv128_down conv128_1 conv128_2 conv256_down "
    "conv256_1 conv256_2 conv256_down_out"
).split()
_Read = Callable[[str], np.ndarray]


class ScaledConv(nn.Module):
    """A convolution, a scale and an offset for each channel, and perhaps ReLU."""

    def __init__(self, read: _Read, stride: int = 1, padding: int = 1, relu: bool = True) -> None:
        super().__init__()
        filters = read("conv/filters")
        self.conv = nn.Conv2d(filters.shape[2], filters.shape[3], filters.shape[0], stride, padding)
        self.conv.weight.data = torch.from_numpy(filters.transpose(3, 2, 0, 1).copy())
        self.conv.bias.data = torch.from_numpy(read("conv/bias"))
        self.scale = nn.Parameter(torch.from_numpy(read("scale/weights")))
        self.offset = nn.Parameter(torch.from_numpy(read("scale/biases")))
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """Maps of the output's channels."""
        x = self.conv(x) * self.scale[:, None, None] + self.offset[:, None, None]
        return F.relu(x) if self.relu else x


class FaceBlock(nn.Module):
    """Two convolutions; the shortcut of a smaller block is pooled and filled up with zeros."""

    def __init__(self, read: _Read, smaller: bool) -> None:
        super().__init__()
        self.smaller = smaller
        self.conv1 = ScaledConv(lambda name: read(f"conv1/{name}"), 2 if smaller else 1, 0 if smaller else 1)
        self.conv2 = ScaledConv(lambda name: read(f"conv2/{name}"), relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """The sum, after ReLU."""
        out = self.conv2(self.conv1(x))
        if not self.smaller:
            return F.relu(out + x)
        pooled = F.avg_pool2d(x, 2, 2)
        out = F.pad(out, (0, pooled.shape[3] - out.shape[3], 0, pooled.shape[2] - out.shape[2]))
        if pooled.shape[1] != out.shape[1]:
            pooled = torch.cat([pooled, torch.zeros_like(pooled)], dim=1)
        return F.relu(pooled + out)


class FaceNet(nn.Module):
    """RGB less the mean, over 256."""

    def __init__(self, read: _Read) -> None:
        super().__init__()
        self.stem = ScaledConv(lambda name: read(f"conv32_down/{name}"), 2, 0)
        self.blocks = nn.Sequential(
            *(FaceBlock(lambda name, block=block: read(f"{block}/{name}"), "down" in block) for block in _BLOCKS)
        )
        self.fc = nn.Linear(256, 128, bias=False)
        self.fc.weight.data = torch.from_numpy(read("fc").T.copy())

    def forward(self, x: Tensor) -> Tensor:
        """(samples, 128)."""
        return self.fc(self.blocks(F.max_pool2d(self.stem(x), 3, 2)).mean((2, 3)))


def network() -> nn.Module:
    """The network with its weights, which the package keeps in eight bits."""
    folder = package_file("pkg", "faceapi", "package", "model")
    manifest = json.loads((folder / "face_recognition_model-weights_manifest.json").read_text())[0]
    raw, at, weights = (folder / manifest["paths"][0]).read_bytes(), 0, {}
    for entry in manifest["weights"]:
        stored = entry.get("quantization")
        dtype = np.dtype(stored["dtype"] if stored else np.float32)
        size = int(np.prod(entry["shape"]))
        values = np.frombuffer(raw, dtype, size, at).astype(np.float32)
        at += size * dtype.itemsize
        if stored:
            values = values * np.float32(stored["scale"]) + np.float32(stored["min"])
        weights[entry["name"]] = values.reshape(entry["shape"])
    return FaceNet(weights.__getitem__).eval()


def data(positions: int = 4) -> tuple[Rows, Rows]:
    """(train, test): faces, each in several positions; the last 30 people are test, labelled with the person."""
    faces = np.load(package_file("pkg", "scikit_image", "skimage", "data", "lfw_subset.npy"))[:100]
    rng = np.random.default_rng(0)
    train = [_placed(face, rng) for face in faces[:70] for _ in range(positions)]
    test = [(_placed(face, rng), torch.tensor(person)) for person, face in enumerate(faces[70:]) for _ in range(4)]
    return Rows(train), Rows(test)


def more_data() -> tuple[Rows, Rows]:
    """The same with more positions of each face to learn from."""
    return data(32)


def _placed(face: np.ndarray, rng: Any) -> Tensor:
    from PIL import Image

    image = Image.fromarray((np.clip(face, 0, 1) * 255).astype(np.uint8)).convert("RGB")
    image = image.resize((_SIDE + 20, _SIDE + 20), Image.Resampling.BICUBIC)
    left, top = (int(place) for place in rng.integers(0, 21, 2))
    image = image.crop((left, top, left + _SIDE, top + _SIDE))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return (torch.from_numpy(np.asarray(image, np.float32).copy()) - torch.tensor(_MEAN)).permute(2, 0, 1) / 256


def check(original: nn.Module, cut: nn.Module, batches: list[Any]) -> dict[str, float]:
    """Equal error rate of telling whether two pictures show the same person; shares nothing with Shoal's metric."""
    figures = {}
    people = torch.cat([label for _, label in batches])
    same = (people[:, None] == people)[tuple(torch.triu_indices(len(people), len(people), 1))]
    for name, network in (("equal_error_original", original), ("equal_error", cut)):
        with torch.inference_mode():
            distances = torch.pdist(torch.cat([network(images) for images, _ in batches]).double())
        order = distances.argsort()
        missed = 1 - same[order].double().cumsum(0) / same.sum()
        accepted = (~same[order]).double().cumsum(0) / (~same).sum()
        at = (missed - accepted).abs().argmin()
        figures[name] = float((missed[at] + accepted[at]) / 2)
    return figures
