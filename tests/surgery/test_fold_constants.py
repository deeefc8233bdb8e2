import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from networks import CifarResNet, PreactNet, randomised
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.surgery import fold
from shoal.surgery.fold_constants import constants
from shoal.surgery.fold_graph import FoldGraph


def relative(one, other, x):
    with torch.no_grad():
        expected, found = one(x), other(x)
    return float((expected - found).abs().max() / expected.abs().max())


class Block(nn.Module):
    """A pre-activation block; the shortcut pools and projects where the width changes."""

    def __init__(self, width_in, width, ends_in_norm, bias):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.BatchNorm2d(width) if ends_in_norm else nn.Identity()
        self.project = nn.Identity()
        if width_in != width:
            self.project = nn.Sequential(nn.AvgPool2d(1), nn.Conv2d(width_in, width, 1, bias=bias))

    def forward(self, x):
        out = self.conv1(F.relu(self.bn1(x)))
        return self.last(self.conv2(F.relu(self.bn2(out)))) + self.project(x)


class Net(nn.Module):
    def __init__(self, ends_in_norm=False, bias=False, head="norm", pool=None):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.blocks = nn.ModuleList(
            Block(a, b, ends_in_norm, bias) for a, b in ((4, 4), (4, 4), (4, 6), (6, 6), (6, 6))
        )
        self.pool = pool or nn.Identity()
        self.norm = nn.BatchNorm2d(6) if head == "norm" else nn.Identity()
        self.head, self.kind = nn.Linear(6, 3), head

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = self.norm(self.pool(x))
        if self.kind == "relu":
            x = F.relu(x)
        return self.head(x.mean((2, 3)))


def made(**kwargs):
    torch.manual_seed(0)
    return randomised(Net(**kwargs)).double()


def constant_(block, ends_in_norm):
    """Make the branch a constant that is not zero."""
    with torch.no_grad():
        if ends_in_norm:
            block.last.weight.zero_()
            block.last.bias.normal_()
        else:
            block.conv2.weight.zero_()
            block.conv2.bias.normal_()


X = torch.randn(3, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@settings(max_examples=25, deadline=None)
@given(
    which=st.sets(st.sampled_from([0, 1, 3, 4]), min_size=1),
    ends_in_norm=st.booleans(),
    bias=st.booleans(),
    pool=st.sampled_from([None, nn.AvgPool2d(2), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2)]),
    head=st.sampled_from(["norm", "linear"]),
)
def test_the_readers_take_the_constant_in(which, ends_in_norm, bias, pool, head):
    net = made(ends_in_norm=ends_in_norm, bias=bias, head=head, pool=pool)
    for index in which:
        constant_(net.blocks[index], ends_in_norm)
    result = fold(net, X)
    assert {step.path for step in result.steps if step.kind == "constant"} == {f"blocks.{index}" for index in which}
    assert relative(net, result.model, X) < 1e-10
    gone = [name for name in result.model.state_dict() if name.startswith(tuple(f"blocks.{i}." for i in which))]
    assert gone == []


def test_the_readers_are_named_in_the_order_they_read():
    net = made()
    constant_(net.blocks[1], False)
    said = fold(net, X).folded[0]
    readers = "blocks.2.bn1, blocks.3.bn1, blocks.4.bn1, norm"
    assert said == f"the constant of blocks.1 into {readers}"
    net = made(bias=True)
    constant_(net.blocks[1], False)
    assert fold(net, X).folded[0] == "the constant of blocks.1 into blocks.2.bn1, blocks.2.project.1"


def test_a_constant_that_sees_only_constants_is_one_unless_a_border_is_in_it():
    net = made(ends_in_norm=True)
    constant_(net.blocks[1], True)
    with torch.no_grad():
        net.blocks[1].last.weight.fill_(0.5)
        net.blocks[1].conv1.weight.zero_()
        net.blocks[1].bn2.bias.fill_(1.0)
    assert [step for step in fold(net, X).steps if step.kind == "constant"] == []  # conv2 pads with zeros
    net.blocks[1].conv2 = nn.Conv2d(4, 4, 1).double()
    result = fold(net.eval(), X)
    assert [step.path for step in result.steps if step.kind == "constant"] == ["blocks.1"]
    assert relative(net, result.model, X) < 1e-10


def refusal(net, path, x=X):
    result = fold(net, x)
    assert [step for step in result.steps if step.kind == "constant"] == []
    assert result.deviation < 1e-10
    return result.refused[path]


def test_a_hook_on_the_block_would_see_another_stream():
    net = made()
    constant_(net.blocks[1], ends_in_norm=False)
    assert fold(net, X).steps[0].path == "blocks.1"
    net.blocks[1].register_forward_hook(lambda module, args, output: None)
    assert "carries hooks" in refusal(net, "blocks.1")


def test_a_relu_on_the_stream_stops_it():
    net = made(head="relu")
    constant_(net.blocks[3], False)
    assert "it adds a constant, but relu in '' reads the stream" in refusal(net, "blocks.3")
    torch.manual_seed(0)
    net = randomised(PreactNet(4, 3)).double()
    constant_(net.blocks[1], False)
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    assert "relu in '' reads the stream" in refusal(net, "blocks.1", x)
    net = randomised(CifarResNet(2, widths=(4, 4, 4))).double()
    with torch.no_grad():
        net.layer1[1].bn2.weight.zero_()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert "relu in 'layer1.1' reads the stream" in refusal(net, "layer1.1", x)


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        (nn.Conv2d(6, 6, 3, padding=1), "'pool' reads the stream with zeros around it: its border would differ"),
        (nn.AvgPool2d(2, padding=1), "avg_pool2d in 'pool' reads the stream"),
        (nn.AvgPool2d(2, ceil_mode=True), "avg_pool2d in 'pool' reads the stream"),
        (nn.GroupNorm(2, 6), "group_norm in 'pool' reads the stream"),
        (nn.ConvTranspose2d(6, 6, 1), "'pool' reads the stream with zeros around it"),
    ],
)
def test_a_border_or_another_norm_stops_it(pool, said):
    net = made(pool=pool)
    constant_(net.blocks[3], False)
    assert said in refusal(net, "blocks.3")


def test_a_convolution_without_padding_takes_it_in():
    net = made(pool=nn.Conv2d(6, 6, 3, groups=2))
    constant_(net.blocks[3], False)
    result = fold(net, X)
    assert result.folded[0] == "the constant of blocks.3 into blocks.4.bn1, pool"
    assert relative(net, result.model, X) < 1e-10


def test_who_returns_the_stream_shows_the_constant():
    class Bare(Net):
        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = block(x)
            return x

    torch.manual_seed(0)
    net = randomised(Bare()).double()
    constant_(net.blocks[3], False)
    assert "the network returns the stream itself" in refusal(net, "blocks.3")


def test_a_branch_of_zero_is_left_to_removal():
    net = made()
    with torch.no_grad():
        net.blocks[1].conv2.weight.zero_()
        net.blocks[1].conv2.bias.zero_()
    assert "removing the block (--exact) is the whole work" in refusal(net, "blocks.1")


def test_tokens_have_their_channels_last():
    class Mixer(nn.Module):
        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 4)

            def forward(self, x):
                return x + self.b(F.gelu(self.a(x)))

        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(*(self.Block() for _ in range(3)))
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.blocks(x))

    torch.manual_seed(0)
    net = Mixer().double().eval()
    with torch.no_grad():
        net.blocks[1].b.weight.zero_()
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    result = fold(net, x)
    assert result.folded[0] == "the constant of blocks.1 into blocks.2.a, head"
    assert relative(net, result.model, x) < 1e-10


def test_what_is_said_to_be_constant_is():
    net = made(ends_in_norm=True)
    constant_(net.blocks[1], True)
    graph = FoldGraph(analyze(net, Batch((X,))))
    found = constants(graph)
    seen = {}
    hooks = [net.blocks[1].last.register_forward_hook(lambda module, args, out: seen.update(out=out))]
    with torch.no_grad():
        net(X)
    hooks[0].remove()
    (only,) = found.values()
    assert torch.equal(seen["out"], only.numbers.view(1, -1, 1, 1).expand_as(seen["out"]))


class Twice(nn.Module):
    """A block of two additions between two linear layers."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x):
            x = x + self.b(F.gelu(self.a(x)))
            return x + self.d(F.gelu(self.c(x)))

    def __init__(self):
        super().__init__()
        self.first, self.block, self.last = nn.Linear(3, 4), self.Block(), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.block(self.first(x)))


def test_two_constants_of_one_block_add_up_and_its_neighbours_merge():
    torch.manual_seed(0)
    net = Twice().double().eval()
    with torch.no_grad():
        net.block.b.weight.zero_()
        net.block.d.weight.zero_()
    x = torch.randn(2, 3, dtype=torch.float64)
    result = fold(net, x)
    assert result.folded == ["the constant of block into last", "last into first"]
    assert relative(net, result.model, x) < 1e-10


def test_a_batch_norm_of_which_only_some_channels_are_constant_is_none():
    net = made(ends_in_norm=True)
    with torch.no_grad():
        net.blocks[1].last.weight[0] = 0.0
    assert [step for step in fold(net, X).steps if step.kind == "constant"] == []


class ByInput(nn.Module):
    """What enters decides how the stream goes on, or what the blocks add: at 8 x 8 everything is plain."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.blocks = nn.ModuleList(WayBlock(way) for _ in range(3))
        self.norm = nn.BatchNorm2d(4)
        self.last = SameConv(4, 3, 2, 2) if way == "same" else nn.Conv2d(4, 3, 2)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        rest = -x.shape[-1] % 4
        if self.way == "pad" and rest:
            x = F.pad(x, (0, rest, 0, rest))
        if (self.way == "large" and x.shape[-1] > 8) or (self.way == "samples" and len(x) != 3):
            x = F.relu(x)
        if self.way == "values" and float(x.detach().std()) > 3.5:
            x = F.relu(x)
        norm = self.norm(x) if self.way != "same" else x
        return self.last(norm).mean((2, 3))


class WayBlock(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.way, self.conv = way, nn.Conv2d(4, 4, 1)

    def forward(self, x):
        if self.way == "adds" and x.shape[-1] > 10:
            return x
        return x + self.conv(x)


class SameConv(nn.Conv2d):
    """Pads where its stride does not divide the size."""

    def forward(self, x):
        rest = -x.shape[-1] % 2
        return super().forward(F.pad(x, (0, rest, 0, rest)) if rest else x)


@pytest.mark.parametrize("way", ["none", "pad", "large", "samples", "values", "adds", "same"])
def test_what_is_folded_holds_for_other_sizes_numbers_and_values(way):
    torch.manual_seed(0)
    net = randomised(ByInput(way)).double()
    with torch.no_grad():
        net.blocks[1].conv.weight.zero_()
        net.blocks[1].conv.bias.copy_(torch.tensor([1.0, -2.0, 3.0, 0.5]))
    x = torch.randn(3, 4, 8, 8, dtype=torch.float64)
    result = fold(net, x)
    folded = [step.path for step in result.steps if step.kind == "constant"]
    assert folded == (["blocks.1"] if way == "none" else [])
    for samples, side, scale in ((3, 8, 1.0), (2, 7, 1.0), (1, 12, 1.0), (5, 16, 9.0), (3, 5, 0.1)):
        y = scale * torch.randn(samples, 4, side, side, dtype=torch.float64)
        assert relative(net, result.model, y) < 1e-10


def test_a_norm_stays_before_a_layer_that_pads_at_some_sizes():
    torch.manual_seed(0)
    net = randomised(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), SameConv(4, 3, 2, 2))).double()
    result = fold(net, torch.randn(3, 4, 8, 8, dtype=torch.float64))
    assert result.steps == []
    assert relative(net, result.model, torch.randn(2, 4, 7, 7, dtype=torch.float64)) < 1e-10
