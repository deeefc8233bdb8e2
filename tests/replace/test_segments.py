import pytest
import torch
from given import VGG, dissected, mlp, randn
from torch import nn

import networks
import shoal
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.errors import NotReachedError
from shoal.replace import build_segments


def test_blocks_of_a_residual_network():
    anatomy = dissected(lambda: networks.CifarResNet(2, widths=(4, 8, 16)), 3, 8, 8)
    line = build_segments(anatomy)
    assert line.paths == tuple(f"layer{stage}.{number}" for stage in (1, 2, 3) for number in (0, 1))
    assert line.is_contiguous == (False, *[True] * 5)
    assert all(step.residual and step.can_bound_span and step.paths == (step.path,) for step in line.segments)
    step = line.segment("layer2.0")
    assert (step.in_shape, step.out_shape, step.tail) == ((4, 8, 8), (8, 4, 4), "relu")
    assert line.module(anatomy.model, "layer2.0") is anatomy.model.layer2[0]
    with pytest.raises(KeyError):
        line.segment("conv1")


def test_layers_of_a_vgg():
    """Each convolution with its norm and activation; what has no weights is a step that no span ends with."""
    anatomy = dissected(lambda: VGG(norm=True), 3, 8, 8)
    line = build_segments(anatomy)
    assert line.paths == (
        "features.0", "features.3", "features.6", "features.7", "features.10", "features.13", "avgpool",
        "classifier.0", "classifier.3", "classifier.6",
    )  # fmt: skip
    # The network's own code flattens what the pooling returns.
    assert line.is_contiguous == (False, *[True] * 6, False, True, True)
    assert [step.can_bound_span for step in line.segments] == [
        True,
        True,
        False,
        True,
        True,
        False,
        False,
        True,
        True,
        True,
    ]
    assert not any(step.residual for step in line.segments)
    assert line.segment("features.3").paths == ("features.3", "features.4", "features.5")
    assert line.segment("classifier.0").paths == ("classifier.0", "classifier.1", "classifier.2")
    assert line.segment("features.6").in_shape == (4, 8, 8)
    assert line.segment("features.6").out_shape == (4, 4, 4)


def test_the_steps_in_order_are_the_network():
    for build, shape in ((lambda: mlp(norm=True), (4,)), (lambda: mlp(act=nn.SiLU), (5, 4))):
        anatomy = dissected(build, *shape)
        line, x = build_segments(anatomy), randn(3, *shape, seed=1)
        y = x
        for path in line.paths:
            y = line.module(anatomy.model, path)(y)
        assert torch.equal(y, anatomy.model(x))
        assert line.is_contiguous == (False, *[True] * 3)


@pytest.mark.parametrize("idle", [nn.Dropout, nn.Dropout1d, nn.AlphaDropout, nn.Identity])
def test_what_does_nothing_in_eval_mode_does_not_part_a_chain(idle):
    """It hands its very input through, so that all that reads its result seems to read what went in."""
    chain = nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), idle(), idle(), nn.Linear(6, 6), idle(), nn.ReLU(), nn.Linear(6, 2)
    )
    line = build_segments(analyze(chain.double().eval(), Batch((randn(2, 5, 4),))))
    assert [step.paths for step in line.segments] == [("0", "1", "2", "3"), ("4", "5", "6"), ("7",)]
    assert line.is_contiguous == (False, True, True)


class Wired(nn.Module):
    """A plain chain with something of its own between its second layer and the third."""

    def __init__(self, wiring):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout()) for _ in range(4))
        self.other, self.wiring = nn.Linear(4, 4), wiring

    def forward(self, x):
        x = self.layers[1](self.layers[0](x))
        y, read = self.wiring(self, x)
        out = self.layers[3](self.layers[2](y))
        return out if read is None else torch.cat([out, read], dim=1)


@pytest.mark.parametrize(
    "wiring",
    [
        lambda net, x: (x.clamp(max=1), None),  # a gap
        lambda net, x: (x * 2, None),
        lambda net, x: (x, x),  # a tap: read once more
        lambda net, x: (x, x.tanh()),
        lambda net, x: (x, net.other(x)),
        lambda net, x: (net.other(x) * x, None),  # a gate
    ],
)
def test_taps_and_gaps_part_a_plain_chain(wiring):
    torch.manual_seed(0)
    line = build_segments(analyze(Wired(wiring).eval(), Batch((torch.randn(2, 4),))))
    steps = dict(zip(line.paths, line.is_contiguous, strict=True))
    assert {key: steps[key] for key in ("layers.0.0", "layers.1.0", "layers.2.0", "layers.3.0")} == {
        "layers.0.0": False,
        "layers.1.0": True,
        "layers.2.0": False,
        "layers.3.0": True,
    }


def test_a_tap_inside_a_layer_parts_it_too():
    class Peeking(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)

        def forward(self, x):
            y = self.first(x)
            return self.last(self.norm(y)) * y

    line = build_segments(analyze(Peeking().eval(), Batch((torch.randn(2, 4),))))
    assert line.paths == ("first", "norm", "last")
    assert line.is_contiguous == (False, False, True)
    assert [step.can_bound_span for step in line.segments] == [True, False, True]


def test_a_layer_that_is_called_twice_is_in_no_line():
    shared = nn.Linear(4, 4)
    chain = nn.Sequential(nn.Linear(4, 4), shared, nn.ReLU(), shared, nn.Linear(4, 4))
    line = build_segments(analyze(chain.eval(), Batch((torch.randn(2, 4),))))
    assert not any("1" in step.paths for step in line.segments)
    assert not any(line.is_contiguous)


def test_the_modules_stay_where_they_are():
    anatomy = dissected(VGG, 3, 8, 8)
    modules = list(anatomy.model.modules())
    line = build_segments(anatomy)
    joined = line.module(anatomy.model, "features.0")
    assert list(joined) == [anatomy.model.features[0], anatomy.model.features[1]]
    assert list(anatomy.model.modules()) == modules


class StreamBlock(nn.Module):
    """Adds to two streams, the second of which gets a part of the first."""

    def __init__(self, crosses):
        super().__init__()
        self.f, self.g, self.cross = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4) if crosses else None

    def forward(self, x, y):
        x = x + torch.tanh(self.f(x))
        y = y if self.cross is None else y + self.cross(x)
        return x, y + torch.tanh(self.g(y))


class Ordinary(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return x + torch.tanh(self.fc(x))


class StreamNet(nn.Module):
    """Blocks of two streams, and ordinary ones behind them."""

    def __init__(self, crosses, ordinary=0):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.blocks = nn.ModuleList(StreamBlock(crosses) for _ in range(3))
        self.more = nn.Sequential(*(Ordinary() for _ in range(ordinary)))

    def forward(self, x):
        x, y = self.first(x), self.second(x)
        for block in self.blocks:
            x, y = block(x, y)
        return self.head(self.more(x + y))


@pytest.mark.parametrize("ordinary", [0, 2])
@pytest.mark.parametrize("crosses", [False, True])
def test_a_block_of_two_streams_is_no_segment(crosses, ordinary):
    """A replacement would return one of them, and None for the other."""
    torch.manual_seed(0)
    graph = analyze(StreamNet(crosses, ordinary).eval(), Batch(args=(torch.randn(2, 4),)))
    assert [block.removable for block in graph.chain] == [True] * (3 + ordinary)
    assert build_segments(graph).paths == tuple(f"more.{index}" for index in range(ordinary))


@pytest.mark.parametrize("crosses", [False, True])
def test_networks_of_two_streams_lose_blocks_without_a_plan_only(crosses):
    torch.manual_seed(0)
    model, loader = StreamNet(crosses).eval(), [torch.randn(16, 4) for _ in range(2)]
    quick = {"latency_seconds": 0.02}
    with pytest.raises(NotReachedError, match=r"one stream(.|\n)*--remove"):
        shoal.compress(model, loader, shoal.Budget(params=0.7), config=shoal.CompressConfig(**quick))
    result = shoal.compress(model, loader, shoal.RemoveBlocks(1), config=shoal.CompressConfig(**quick, refit=True))
    assert result.record.reached
    assert result.model(loader[0]).shape == (16, 2)
