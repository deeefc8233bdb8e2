import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import networks
from shoal.batches import Batch
from shoal.blocks import analyze, trace
from shoal.blocks.shortcut_modules import ShortcutModule


class Projected(nn.Module):
    """Pre-activation whose projection reads the normalised input, as in timm's ResNetV2."""

    def __init__(self, width=4, out=6):
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.down = nn.Conv2d(width, out, 1, stride=2)
        self.conv1 = nn.Conv2d(width, out, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)

    def forward(self, x):
        seen = F.relu(self.norm(x), inplace=True)
        return self.conv2(F.relu(self.conv1(seen))) + self.down(seen)


class Postactivated(nn.Module):
    """torchvision's basic block: one ReLU module, in place, called twice."""

    def __init__(self, width=4, out=4, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = nn.Sequential(nn.Conv2d(width, out, 1, stride), nn.BatchNorm2d(out)) if stride > 1 else None

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class InPlace(nn.Module):
    """Everything after the addition is written into its result."""

    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        out = self.conv(x)
        out += x
        return F.relu_(out).mul_(2)


def net_of(block, stem=None):
    stem = stem or nn.Conv2d(3, 4, 3, padding=1)
    return nn.Sequential(stem, block, nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))


# network, path of the block, the last convolution and norm of its branch
CASES = {
    "identity": (lambda: net_of(networks.PreactBlock(4)), "1", ["conv2"]),
    "identity, activation": (lambda: net_of(Postactivated()), "1", ["bn2"]),
    "identity, activation idle": (
        lambda: net_of(Postactivated(), nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())),
        "1",
        ["bn2"],
    ),
    "identity, in place": (lambda: net_of(InPlace()), "1", ["conv"]),
    "reshape": (lambda: net_of(networks.CifarBlock(4, 8, 2)), "1", ["bn2"]),
    "projection": (lambda: net_of(Postactivated(4, 6, 2)), "1", ["bn2"]),
    "projection of the activated": (lambda: net_of(Projected()), "1", ["conv2"]),
}


def prepared(name):
    make, path, last = CASES[name]
    torch.manual_seed(1)
    net = make()
    x = torch.randn(2, 3, 8, 8)
    net.eval()(x)
    networks.randomised(net)
    return net, path, last, x


def block_input(net, path, x):
    seen = []
    handle = net.get_submodule(path).register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    with torch.no_grad():
        net(x)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_block_with_its_branch_zeroed(name):
    net, path, last, x = prepared(name)
    shortcut = analyze(net, Batch((x,))).shortcut_modules[path].eval()
    for samples in (x, torch.randn(5, 3, 8, 8), torch.randn(1, 3, 8, 8)):
        given = block_input(net, path, samples)
        zeroed = copy.deepcopy(net.get_submodule(path))
        with torch.no_grad():
            for part in last:
                zeroed.get_submodule(part).weight.zero_()
                zeroed.get_submodule(part).bias.zero_()
            assert torch.equal(shortcut(given.clone()), zeroed(given.clone()))


@pytest.mark.parametrize("name", CASES)
def test_it_leaves_its_input_and_the_block_alone(name):
    net, path, _, x = prepared(name)
    expected = net(x)
    shortcut = analyze(net, Batch((x,))).shortcut_modules[path].eval()
    given = block_input(net, path, x)
    before = given.clone()
    shortcut(given)
    assert torch.equal(given, before)
    assert torch.equal(net(x), expected)


@pytest.mark.parametrize("name", CASES)
def test_it_holds_no_more_than_it_needs(name):
    net, path, last, x = prepared(name)
    shortcut = analyze(net, Batch((x,))).shortcut_modules[path]
    block = net.get_submodule(path)
    kept = {id(parameter) for parameter in shortcut.parameters()}
    assert kept < {id(parameter) for parameter in block.parameters()}
    assert not any(id(parameter) in kept for part in last for parameter in block.get_submodule(part).parameters())


def cut(name):
    net, path, _, x = prepared(name)
    net.set_submodule(path, analyze(net, Batch((x,))).shortcut_modules[path])
    return net.eval(), x


@pytest.mark.parametrize("name", CASES)
def test_a_network_with_it_is_an_ordinary_module(name):
    net, x = cut(name)
    expected = net(x)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert torch.equal(net(x), expected)
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(x), expected)
    net.train()
    assert all(module.training for module in net.modules())
    net(x).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert not any(module.training for module in net.eval().modules())
    assert net.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize("name", CASES)
def test_it_exports(name):
    net, x = cut(name)
    dynamic = {0: torch.export.Dim("batch", min=1, max=64)}
    exported = torch.export.export(net, (x,), dynamic_shapes=(dynamic,)).module()
    for samples in (x, torch.randn(3, 3, 8, 8)):
        torch.testing.assert_close(exported(samples), net(samples))


@pytest.mark.parametrize("name", ["identity, activation", "reshape", "projection of the activated"])
def test_it_compiles_in_one_piece(name):
    net, x = cut(name)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), net(x))


def test_what_is_nothing_or_one_module_is_an_ordinary_module():
    net, path, _, x = prepared("identity")
    assert type(analyze(net, Batch((x,))).shortcut_modules[path]) is nn.Identity
    net, path, _, x = prepared("identity, activation idle")
    graph = analyze(net, Batch((x,)))
    assert type(graph.shortcut_modules[path]) is nn.Identity
    assert graph.chain[path].removable_activation_assumption == (
        "the input of '1' is never negative, so the ReLU after its addition does nothing"
    )
    net, path, _, x = prepared("identity, activation")
    graph = analyze(net, Batch((x,)))
    assert type(graph.shortcut_modules[path]) is nn.ReLU
    assert graph.chain[path].removable_activation_assumption is None
    assert graph.shortcut_modules[path].inplace is False
    assert net[1].relu.inplace is True


def test_its_steps_can_be_read():
    net, path, _, x = prepared("projection")
    shortcut = analyze(net, Batch((x,))).shortcut_modules[path]
    assert isinstance(shortcut, ShortcutModule)
    assert repr(shortcut).startswith("ShortcutModule(\n  x -> downsample -> relu")


class Asked(nn.Module):
    attention_type = "class attribute"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.kind = "full"
        self.layer_idx = 3

    def forward(self, x, mask=None, **kwargs):
        return x + self.fc(x), mask


class Asking(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Asked() for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x, _ = block(x, mask=x.mean() if block.kind == "full" else None, flag=True)
        return x * 2


def test_plain_attributes_that_the_network_asks_for_stay():
    net = Asking()
    graph = analyze(net, Batch((torch.randn(2, 4),)))
    assert len(graph.shortcut_modules) == 2
    shortcut = graph.shortcut_modules["blocks.0"]
    assert (shortcut.kind, shortcut.layer_idx) == ("full", 3)
    x = torch.randn(3, 4)
    assert torch.equal(shortcut(x, mask=None, flag=True)[0], x)


def test_parallel_branches_go_together():
    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Sequential(nn.Linear(4, 4), nn.GELU())
            self.b = nn.Sequential(nn.Linear(4, 4), nn.GELU())

        def forward(self, x):
            return x + self.a(x) + self.b(x)

    graph = analyze(nn.Sequential(nn.Linear(4, 4), Parallel()), Batch((torch.randn(2, 4),)))
    (block,) = graph.chain
    assert len(block.units) == 2
    assert block.activation is None
    assert type(graph.shortcut_modules["1"]) is nn.Identity


class Held(nn.Module):
    """Its shortcut is scaled by its own parameter and shifted by a constant."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.down = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.full((4,), 2.0))
        self.register_buffer("shift", torch.full((4,), 3.0))
        self.held = torch.full((4,), 0.5)

    def forward(self, x):
        return (x + self.fc(x)) * self.scale + self.shift - self.held


def test_parameters_buffers_and_constants_after_the_addition_stay_with_it():
    net = nn.Sequential(nn.Linear(4, 4), Held())
    shortcut = analyze(net, Batch((torch.randn(2, 4),))).shortcut_modules["1"]
    x = torch.randn(3, 4)
    assert torch.equal(shortcut(x), x * 2 + 3 - 0.5)
    assert shortcut.scale is net[1].scale
    assert {"scale", "shift"} <= set(shortcut.state_dict())
    assert "fc" not in dict(shortcut.named_modules())


def test_a_shortcut_that_belongs_to_somebody_else_keeps_the_block():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Linear(4, 4)
            self.block = Inner()

        def forward(self, x):
            return self.block(x, self.down)

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

        def forward(self, x, down):
            return self.fc(x) + F.linear(x, down.weight)

    chain = trace(Outer(), torch.randn(2, 4))
    reasons = {block.path: block.reason for block in chain}
    assert reasons == {"block": "its shortcut reads 'down.weight', which belongs to another module"}


class Flattening(nn.Module):
    """Flattens its positions for a linear layer and restores them at the end, as OPT does."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x):
        shape = x.shape
        x = x.reshape(-1, x.size(-1))
        return (x + self.down(F.relu(self.up(x)))).view(shape)


def test_reshapes_there_and_back_leave_no_batch_size():
    net = nn.Sequential(nn.Linear(4, 4), Flattening(), Flattening())
    graph = analyze(net, Batch((torch.randn(2, 3, 4),)))
    assert graph.chain["1"].removable
    given = torch.randn(5, 3, 4)
    assert torch.equal(graph.shortcut_modules["1"](given), given)


class Turning(nn.Module):
    """A shortcut that changes the shape for good."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(8, 8)

    def forward(self, x):
        x = x.reshape(-1, 8)
        return x + self.up(x)


def test_other_reshapes_stay():
    net = nn.Sequential(nn.Linear(4, 4), Turning(), nn.Linear(8, 2))
    graph = analyze(net, Batch((torch.randn(2, 2, 4),)))
    given = torch.randn(3, 2, 4)
    assert torch.equal(graph.shortcut_modules["1"](given), given.reshape(3, 8))
