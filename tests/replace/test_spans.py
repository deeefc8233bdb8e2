import pytest
import torch
import torch.nn.functional as F
from given import VGG, mlp
from torch import nn

import networks
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.replace import build_segments, find_spans


def anatomy_of(model, *shape, seed=0):
    return analyze(model.eval(), Batch((torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed)),)))


@pytest.fixture(scope="module")
def cifar():
    torch.manual_seed(0)
    return anatomy_of(networks.CifarResNet(2, widths=(4, 8, 16)), 3, 8, 8)


def found(anatomy, longest=9):
    return {one.paths: one for one in find_spans(anatomy, build_segments(anatomy), longest)}


def test_every_span_of_a_network_of_three_stages(cifar):
    line = build_segments(cifar)
    assert line.paths == ("layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1")
    assert line.is_contiguous == (False, True, True, True, True, True)
    spans = find_spans(cifar, line, 6)
    assert [(one.start, one.stop) for one in spans] == [(i, j) for i in range(6) for j in range(i + 1, 7)]
    assert all(one.paths == line.paths[one.start : one.stop] for one in spans)
    assert {one.tail for one in spans} == {"relu"}
    assert {one.layout for one in spans} == {"channels_first"}
    assert all(one.residual and one.dilation == 1 and one.end == one.paths[-1] for one in spans)
    assert spans[2].name == "layer1.0..layer2.0"


def test_strides_channels_and_shapes(cifar):
    spans = {(one.start, one.stop): one for one in found(cifar).values()}
    strides = {key: one.stride for key, one in spans.items()}
    assert strides[0, 2] == 1
    assert strides[0, 3] == strides[2, 3] == strides[3, 5] == 2
    assert strides[0, 5] == strides[1, 6] == 4
    whole = spans[0, 6]
    assert (whole.in_channels, whole.out_channels) == (4, 16)
    assert (whole.in_shape, whole.out_shape) == ((4, 8, 8), (16, 2, 2))
    assert spans[0, 2].keeps_shape
    assert not spans[1, 3].keeps_shape


@pytest.mark.parametrize(("longest", "count"), [(1, 6), (2, 11), (5, 20), (99, 21)])
def test_none_is_longer_than_asked(cifar, longest, count):
    spans = find_spans(cifar, build_segments(cifar), longest)
    assert len(spans) == count
    assert max(len(one.paths) for one in spans) == min(longest, 6)


@pytest.mark.parametrize("side", [7, 9])
def test_odd_sides_have_the_stride_of_the_convolution(side):
    spans = found(anatomy_of(networks.CifarResNet(1, widths=(4, 8, 16)), 3, side, side))
    assert spans["layer1.0", "layer2.0"].stride == 2
    assert spans["layer1.0", "layer2.0", "layer3.0"].stride == 4


def test_pre_activation_blocks_end_in_their_sum():
    spans = found(anatomy_of(networks.PreactNet(4, 3), 1, 8, 8))
    assert len(spans) == 6
    assert {(one.tail, one.layout, one.stride) for one in spans.values()} == {("identity", "channels_first", 1)}


class Tapped(networks.PreactNet):
    """Reads what its second block returned once more at the end."""

    def forward(self, x):
        x = self.stem(x)
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number == 1:
                read = x
        return self.head((F.relu(x) + read.tanh()).mean(dim=(2, 3)))


def test_no_span_crosses_a_tap():
    anatomy = anatomy_of(Tapped(4, 4), 1, 8, 8)
    assert build_segments(anatomy).is_contiguous == (False, True, False, True)
    assert ("blocks.0", "blocks.1") in found(anatomy)
    assert ("blocks.2", "blocks.3") in found(anatomy)
    assert not any({"blocks.1", "blocks.2"} <= set(paths) for paths in found(anatomy))


class Returning(networks.PreactNet):
    """Returns the output of its first block beside the logits."""

    def forward(self, x):
        x = first = self.blocks[0](self.stem(x))
        for block in self.blocks[1:]:
            x = block(x)
        return self.head(F.relu(x).mean(dim=(2, 3))), first


def test_what_the_network_returns_is_a_tap():
    assert build_segments(anatomy_of(Returning(4, 3), 1, 8, 8)).is_contiguous == (False, False, True)


class Gapped(networks.PreactNet):
    """Does something between its blocks."""

    def forward(self, x):
        x = self.blocks[0](self.stem(x)).clamp(max=0.5)
        for block in self.blocks[1:]:
            x = block(x)
        return self.head(F.relu(x).mean(dim=(2, 3)))


def test_no_span_crosses_a_gap():
    assert build_segments(anatomy_of(Gapped(4, 3), 1, 8, 8)).is_contiguous == (False, False, True)


class Conditioned(nn.Module):
    """A residual block with a second input."""

    def __init__(self, width):
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x, condition):
        return x + self.fc(x * condition)


class Plain(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x, scale=1.0):
        return x + scale * self.fc(x)


class Mixed(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.embed = nn.Linear(width, width)
        self.blocks = nn.ModuleList([Plain(width), Conditioned(width), Plain(width), Plain(width)])

    def forward(self, x):
        condition = self.embed(x)
        x = self.blocks[0](self.embed(x))
        x = self.blocks[1](x, condition)
        return self.blocks[3](self.blocks[2](x, scale=0.5))


def test_blocks_that_are_given_more_than_the_stream_are_in_the_line():
    """A second tensor or a number beside the stream: a stand-in does not need them."""
    anatomy = anatomy_of(Mixed(), 4)
    assert build_segments(anatomy).is_contiguous == (False, True, True, True)
    assert len(found(anatomy)) == 10


def test_a_block_whose_stream_does_not_come_first_is_not_in_the_line():
    network = Mixed()
    network.blocks[1].forward = lambda condition, x: x + network.blocks[1].fc(x * condition)
    network.forward = lambda x: network.blocks[2](network.blocks[1](network.embed(x), network.blocks[0](x)))
    assert build_segments(anatomy_of(network, 4)).paths == ("blocks.0", "blocks.2")


def test_a_block_that_is_called_twice_is_not_in_the_line():
    line = build_segments(anatomy_of(networks.SharedNet(), 4, 8, 8))
    assert line.paths == ("first", "blocks.1", "blocks.3")
    assert not any(line.is_contiguous)


def test_a_norm_behind_the_addition_is_no_tail_but_part_of_what_is_computed():
    anatomy = anatomy_of(networks.PostNormNet(), 5, 8)
    assert build_segments(anatomy).paths
    assert {(step.tail, step.replaces_output) for step in build_segments(anatomy).segments} == {("identity", True)}
    assert {one.tail for one in found(anatomy).values()} == {"identity"}
    assert not any(
        step.replaces_output
        for step in build_segments(anatomy_of(networks.CifarResNet(1, widths=(4, 8, 16)), 3, 8, 8)).segments
    )


class PreNorm(nn.Module):
    def __init__(self, depth=3):
        super().__init__()
        layer = lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.layers = nn.Sequential(*(layer() for _ in range(depth)))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layers(x).mean(dim=1))


def test_pre_norm_transformer_blocks_on_tokens():
    spans = found(anatomy_of(PreNorm(), 5, 8))
    assert len(spans) == 6
    assert {(one.layout, one.tail, one.stride) for one in spans.values()} == {("channels_last", "identity", 1)}
    assert {(one.in_channels, one.out_channels) for one in spans.values()} == {(8, 8)}


def test_plain_features():
    spans = found(anatomy_of(networks.NumberedNet(8), 4))
    assert len(spans) == 6
    assert {(one.layout, one.in_shape, one.in_channels) for one in spans.values()} == {("channels_last", (8,), 8)}


def places(anatomy):
    return [(one.start, one.stop) for one in find_spans(anatomy, build_segments(anatomy), 9)]


@pytest.mark.parametrize("norm", [False, True])
def test_layers_of_a_plain_network(norm):
    """Pooling lies inside a span, but at neither end; where images become features every span ends."""
    anatomy = anatomy_of(VGG(norm=norm), 3, 8, 8)
    spans = {(one.start, one.stop): one for one in found(anatomy).values()}
    assert sorted(spans) == [
        (0, 1), (0, 2), (0, 4), (0, 5), (1, 2), (1, 4), (1, 5), (3, 4), (3, 5), (4, 5),
        (7, 8), (7, 9), (7, 10), (8, 9), (8, 10), (9, 10),
    ]  # fmt: skip
    whole = spans[0, 5]
    assert (whole.in_shape, whole.out_shape, whole.stride, whole.layout) == ((3, 8, 8), (8, 4, 4), 2, "channels_first")
    assert len(whole.paths) == (13 if norm else 9)
    assert (whole.paths[0], whole.end) == ("features.0", "features.10" if norm else "features.7")
    assert whole.name == f"features.0..{whole.end}"
    assert not whole.residual
    assert {one.tail for key, one in spans.items() if key[1] < 10} == {"relu"}
    assert spans[7, 10].tail == "identity"
    assert spans[7, 8].paths == ("classifier.0", "classifier.1", "classifier.2")
    assert (spans[8, 9].layout, spans[8, 9].in_shape, spans[8, 9].keeps_shape) == ("channels_last", (12,), True)


def test_layers_of_a_perceptron_on_tokens():
    spans = found(anatomy_of(mlp(act=nn.GELU), 5, 4))
    assert len(spans) == 10
    assert {(one.layout, one.stride) for one in spans.values()} == {("channels_last", 1)}
    assert [one.tail for one in spans.values()][:4] == ["gelu"] * 3 + ["identity"]


@pytest.mark.parametrize("side", [5, 6, 8])
@pytest.mark.parametrize("layer", [nn.Conv1d, nn.Conv3d])
def test_signals_and_volumes_get_no_spans(layer, side):
    """Also where a signal is as long as it has channels, and nothing of its shape tells which axis they are on."""
    axes = 1 if layer is nn.Conv1d else 3
    chain = nn.Sequential(layer(6, 6, 3, padding=1), nn.ReLU(), layer(6, 6, 3, padding=1), nn.ReLU())
    assert places(anatomy_of(chain, 6, *[side] * axes)) == []

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = layer(6, 6, 3, padding=1)

        def forward(self, x):
            return F.relu(x + self.conv(x))

    anatomy = anatomy_of(nn.Sequential(Block(), Block()), 6, *[side] * axes)
    assert build_segments(anatomy).paths == ("0", "1")
    assert places(anatomy) == []


def test_what_follows_a_signal_may_be_replaced():
    head = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 9), nn.ReLU(), nn.Linear(9, 2))
    assert found(anatomy_of(head, 2, 8)).keys() == {("3", "4"), ("3", "4", "5"), ("5",)}


def test_dilation_is_the_largest_of_a_span():
    chain = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1, dilation=9),
    )
    dilations = {key: one.dilation for key, one in found(anatomy_of(chain, 3, 8, 8)).items()}
    assert dilations["0", "1"] == dilations[("4",)] == 1
    assert dilations["0", "1", "2", "3"] == dilations["2", "3", "4"] == 2


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, (1, 2), 1), nn.ConvTranspose2d(4, 4, 2, 2), nn.Unflatten(1, (2, 2))],
)
def test_no_span_holds_what_has_no_stride(layer):
    """Borders that are cut off, a stride in one direction, a larger grid, another number of axes."""
    chain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), layer)
    rest = nn.Conv2d(2 if isinstance(layer, nn.Unflatten) else 4, 3, 1)
    chain.append(nn.Flatten(1, 2) if isinstance(layer, nn.Unflatten) else rest)
    assert (0, 1) in places(anatomy_of(chain, 3, 8, 8))
    assert not any(start <= 1 < stop for start, stop in places(anatomy_of(chain, 3, 8, 8)))


class Pooled(nn.Module):
    """A block whose shortcut is pooled: to a size, or by a stride."""

    def __init__(self, pool):
        super().__init__()
        self.pool, self.conv = pool, nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = self.pool(x)
        return torch.relu(x + self.conv(x))


class CentreCrop(nn.Module):
    def forward(self, x):
        return x[:, :, 2:-2, 2:-2]


@pytest.mark.parametrize(
    ("pool", "replaceable"),
    [
        (nn.AvgPool2d(2, ceil_mode=True), True),
        (nn.MaxPool2d(3, 2, 1), True),
        (nn.AvgPool2d(2), False),  # 7 to 3: rounded down, where a convolution of stride 2 returns 4
        (nn.AdaptiveAvgPool2d(4), False),
        (CentreCrop(), False),
    ],
)
def test_no_stand_in_where_the_size_is_not_that_of_a_stride(pool, replaceable):
    """All of them make 4 x 4 of the 8 x 8 that were traced."""
    torch.manual_seed(0)
    blocks = (Pooled(nn.Identity()), Pooled(pool), Pooled(nn.Identity()))
    net = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).double().eval()
    anatomy = analyze(net, Batch((torch.randn(2, 4, 8, 8, dtype=torch.float64),)))
    line = build_segments(anatomy)
    assert line.segment("1").out_shape == (4, 4, 4)
    covered = {path for span in find_spans(anatomy, line, 3) for path in span.paths}
    assert covered == ({"0", "1", "2"} if replaceable else {"0", "2"})
