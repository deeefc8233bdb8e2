"""What the tests of this room are given: data, plain chains, spans by their place, sums of rows."""

import torch
from torch import nn

import networks
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.regress import Moments
from shoal.replace import build_segments, find_spans
from shoal.replace.heldout_moments import HeldOutSamples
from shoal.replace.kinds import MomentsView


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def data(*shape, count=3, dtype=torch.float64):
    """Mini-batches of one tensor."""
    return [Batch((randn(*shape, seed=seed, dtype=dtype),)) for seed in range(count)]


def made(build, seed=0):
    """A network in float64 and eval mode, with batch norms that do something."""
    torch.manual_seed(seed)
    return networks.randomised(build()).double().eval()


def spans(anatomy, longest=9):
    """Every span by its start and stop."""
    return {(one.start, one.stop): one for one in find_spans(anatomy, build_segments(anatomy), longest)}


def dissected(build, *shape):
    """The anatomy of a fresh network on inputs of this shape."""
    return analyze(made(build), Batch((randn(2, *shape),)))


class VGG(nn.Module):
    """A plain chain, put together as torchvision does it: in-place activations, pooling, dropout."""

    def __init__(self, width=4, norm=False, classes=3):
        super().__init__()
        layers, before = [], 3
        for outputs in (width, width, "pool", 2 * width, 2 * width, "pool"):
            if outputs == "pool":
                layers.append(nn.MaxPool2d(2))
                continue
            layers.append(nn.Conv2d(before, outputs, 3, padding=1))
            layers += [nn.BatchNorm2d(outputs)] * norm + [nn.ReLU(inplace=True)]
            before = outputs
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(before, 12), nn.ReLU(True), nn.Dropout(), nn.Linear(12, 12), nn.ReLU(True), nn.Dropout(),
            nn.Linear(12, classes),
        )  # fmt: skip

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def mlp(width=6, depth=3, act=nn.ReLU, norm=False):
    """Linear layers with an activation each, and a head."""
    layers = [nn.Linear(4, width), act()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), *[nn.BatchNorm1d(width)] * norm, act(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(width, 3))


def fitted_on(samples):
    """Those of mini-batches that are not held out, as one tensor."""
    parts = HeldOutSamples()
    return torch.cat([x[part] for x in samples for part in parts.split(len(x))[1]])


def sums_of(x, y, shortcut=None):
    """The sums of rows, of which the last fifth is held out."""
    cut = len(x) * 4 // 5
    train, held_out = (Moments(x.shape[1], y.shape[1], joint=False) for _ in range(2))
    train.add(x[:cut], y[:cut])
    held_out.add(x[cut:], y[cut:])
    target = torch.zeros(y.shape[1], x.shape[1], dtype=torch.float64) if shortcut is None else shortcut
    return MomentsView(train, held_out, slice(0, y.shape[1]), target)


def least_squares(x, y):
    """Weight and bias of the rows that `sums_of` does not hold out, by torch."""
    cut = len(x) * 4 // 5
    design = torch.cat([x[:cut], torch.ones(cut, 1, dtype=torch.float64)], dim=1)
    solution = torch.linalg.lstsq(design, y[:cut], driver="gelsd").solution
    return solution[:-1].T, solution[-1]
