"""What the tests of planning stand on: small networks, mini-batches, and tables by the fake clock."""

import copy

import torch
from torch import nn

import networks
import stopwatch
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.measure.output_reading import OutputReading, Reading
from shoal.pipeline.cache import MeasurementCache
from shoal.pipeline.candidate_table import CandidateBuilder
from shoal.pipeline.costs import CostModel
from shoal.pipeline.plan_builder import PlanBuilder
from shoal.pipeline.plan_search import PlanSearch
from shoal.replace import build_segments
from shoal.scanning import OutputDamage

CLASSES = OutputDamage(Reading((OutputReading("", "classes", "as the tests say"),)))


def batches(*shape, count=2, first=0):
    return [
        Batch((torch.randn(*shape, generator=torch.Generator().manual_seed(seed)),))
        for seed in range(first, first + count)
    ]


def network(n=2):
    """Six post-activation blocks in three stages."""
    torch.manual_seed(0)
    return networks.randomised(networks.CifarResNet(n, widths=(4, 8, 16)))


class Plain(nn.Module):
    """A VGG: six weighted layers, pooling in between, no shortcut."""

    def __init__(self):
        super().__init__()
        layers, before = [], 3
        for width in (6, 6, 0, 8, 8, 0):
            if not width:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            before = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 10))

    def forward(self, x):
        return self.classifier(self.features(x).mean(dim=(2, 3)))


def plain():
    torch.manual_seed(0)
    return networks.randomised(Plain())


def maker(model=None, shape=(12, 3, 8, 8), shelf=None, clock=None, judged=None, **more):
    """A CandidateBuilder by the fake clock."""
    data = batches(*shape)
    anatomy = analyze(copy.deepcopy(model) if model is not None else network(), data[0].take(2))
    clock = clock or stopwatch.FakeClock(data[0])
    shelf = shelf or MeasurementCache(None, {})
    prices = CostModel(anatomy, build_segments(anatomy), data[0], clock, shelf)
    return CandidateBuilder(
        anatomy, data, judged or batches(*shape, first=9), prices, shelf, **{"damage": CLASSES, **more}
    )


def planner(tables=None, model=None, shape=(12, 3, 8, 8), clock=None, data=None, **more):
    """A PlanSearch by the fake clock."""
    model = model if model is not None else network()
    data = data or batches(*shape)
    anatomy = analyze(copy.deepcopy(model), data[0].take(2))
    # Nothing about plans depends on the refit of neighbours: tables without it take half the time.
    tables = tables or maker(model, shape, **{"refit": None, **more}).build()
    builder = PlanBuilder(anatomy, tables, data, batches(*shape, first=9), CLASSES)
    return PlanSearch(builder, clock or stopwatch.FakeClock(data[0]))
