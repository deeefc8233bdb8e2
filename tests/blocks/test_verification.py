"""What is left of a block is right for other sizes and values than the traced ones, or the block stays."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shoal.batches import as_batch
from shoal.blocks import trace
from shoal.blocks.input_variants import resized
from shoal.blocks.interception import intercept_additions
from shoal.preserve import evaluating
from shoal.surgery import remove_blocks


class Conv(nn.Module):
    """A block of images: `shortcut(x, branch)` is what the branch is added to, and with `before` what it is made of."""

    def __init__(self, shortcut, padding=1, stride=1, before=False):
        super().__init__()
        self.before = before
        self.conv, self.shortcut = nn.Conv2d(4, 4, 3, padding=padding, stride=stride), shortcut

    def forward(self, x):
        if self.before:
            x = self.shortcut(x, x)
            return x + torch.tanh(self.conv(x))
        branch = torch.tanh(self.conv(x))
        return self.shortcut(x, branch) + branch


class Images(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.blocks = nn.ModuleList([make(), make()])
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(dim=(2, 3)))


class Linear(nn.Module):
    def __init__(self, shortcut):
        super().__init__()
        self.linear, self.shortcut = nn.Linear(6, 6), shortcut

    def forward(self, x):
        x = self.shortcut(x)
        return x + torch.tanh(self.linear(x))


class Tokens(nn.Module):
    def __init__(self, shortcut):
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.blocks = nn.ModuleList([Linear(shortcut), Linear(shortcut)])
        self.head = nn.Linear(6, 20)

    def forward(self, ids):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def crop(x, branch):
    top, left = ((x.shape[axis] - branch.shape[axis]) // 2 for axis in (2, 3))
    return x[:, :, top : top + branch.shape[2], left : left + branch.shape[3]]


IMAGES = {
    "cut at the end": (lambda x, o: x[:, :, -o.shape[2] :, -o.shape[3] :], {"padding": 0}),
    "cut at the start": (lambda x, o: x[:, :, : o.shape[2], : o.size(3)], {"padding": 0}),
    "narrow": (lambda x, o: x.narrow(2, 0, o.shape[2]).narrow(3, 1, o.shape[3]), {"padding": 0}),
    "centre crop": (crop, {"padding": 0}),
    "crop by negative ends": (lambda x, o: x[:, :, 1 : x.shape[2] - 1, 1:-1], {"padding": 0}),
    "interpolate": (lambda x, o: F.interpolate(x, size=o.shape[2:]), {"stride": 2}),
    "interpolate by keyword": (
        lambda x, o: F.interpolate(input=x, size=(o.shape[2], o.shape[3]), mode="bilinear"),
        {"stride": 2},
    ),
    "adaptive pool": (lambda x, o: F.adaptive_avg_pool2d(x, o.shape[-2:]), {"stride": 2}),
    "pad": (lambda x, o: F.pad(x, (0, o.shape[3] - x.shape[3], 0, o.shape[2] - x.shape[2])), {"padding": 3}),
    "view": (lambda x, o: x.view(x.shape[0], -1).view(x.shape[0], 4, x.shape[2], x.shape[3]), {}),
    "view without the batch": (lambda x, o: x.reshape(-1, x.shape[3]).view(x.shape), {}),
    "tokens and back": (
        lambda x, o: (
            x.flatten(2).transpose(1, 2).flip(1).transpose(1, 2).reshape(x.shape[0], 4, x.shape[2], x.shape[3])
        ),
        {"before": True},
    ),
    "batch factor": (lambda x, o: x * x.shape[0], {"before": True}),
    "number of positions": (lambda x, o: x * (x.shape[2] * x.shape[3]), {"before": True}),
    "new zeros": (lambda x, o: x + x.new_zeros(x.shape), {"before": True}),
    "ones": (lambda x, o: x + torch.ones(x.shape[0], 1, x.shape[2], x.shape[3]), {"before": True}),
    "rows": (lambda x, o: x + torch.arange(x.shape[2])[:, None], {"before": True}),
    "broadcast": (
        lambda x, o: x * torch.full((1, 4, 1, 1), 2.0).expand(x.size(0), -1, *x.shape[2:]),
        {"before": True},
    ),
}

TOKENS = {
    "positions": lambda x: x + torch.arange(x.shape[1])[None, :, None],
    "causal": lambda x: torch.ones(x.shape[1], x.shape[1]).tril() @ x,
    "last half": lambda x: torch.cat([x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :] * 2], 1),
    "flat": lambda x: x.view(x.shape[0] * x.shape[1], 6).mul(2).view(x.shape[0], x.shape[1], 6),
    "roll": lambda x: torch.roll(x, x.shape[1] - 1, 1),
}

VALUES = {
    "largest": lambda x, o: x / float(x.abs().max()),
    "item": lambda x, o: x * x.mean().item(),
    "a tensor of a number": lambda x, o: x * torch.tensor(float(x.std())),
    "root of the batch": lambda x, o: x / len(x) ** 0.5,
    "numpy": lambda x, o: x + torch.from_numpy(x.detach().numpy().copy().mean(0, keepdims=True)),
    "a branch by value": lambda x, o: x * 2 if x.var() > 0.1 else x / 2,
    "the largest size": lambda x, o: x * min(x.shape[2], 7),
}


def shortcut_alone(net, path, x):
    """The network with zeros for the branches of a block, by its own code."""
    chain = trace(net, x)
    with (
        evaluating(net),
        intercept_additions(net, [chain[path]], lambda path, unit, stream, branch: torch.zeros_like(branch)),
    ):
        return net(x)


def check(net, example, others):
    cut = remove_blocks(net, as_batch(example), ["blocks.0"])
    for other in (example, *others):
        expected = shortcut_alone(net, "blocks.0", other)
        with torch.no_grad():
            assert torch.allclose(cut(other), expected, atol=1e-5), tuple(other.shape)


@pytest.mark.parametrize("name", IMAGES)
def test_sizes_of_images_are_followed(name):
    shortcut, options = IMAGES[name]
    torch.manual_seed(0)
    net = Images(lambda: Conv(shortcut, **options)).eval()
    others = [torch.randn(5, 3, 12, 12), torch.randn(1, 3, 16, 9), torch.randn(3, 3, 11, 23), torch.randn(2, 3, 32, 40)]
    check(net, torch.randn(2, 3, 12, 12), others)


def test_sizes_are_tried_that_leave_other_rests():
    # x[:, :, a : a + b] with a = size // 4 and b = size // 2 ends at 3 * size // 4 for 12, 16 and 5, not for 15.
    sizes = [group[0].args[0].shape[2] for group in resized(as_batch(torch.zeros(1, 3, 12, 12)))]
    assert {size % 4 for size in sizes} == {0, 1, 3}


@pytest.mark.parametrize("name", TOKENS)
def test_lengths_of_sequences_are_followed(name):
    torch.manual_seed(0)
    net = Tokens(TOKENS[name]).eval()
    check(net, torch.randint(0, 20, (2, 7)), [torch.randint(0, 20, shape) for shape in ((1, 7), (4, 5), (3, 16))])


@pytest.mark.parametrize("name", VALUES)
def test_values_in_a_shortcut_are_refused(name):
    torch.manual_seed(0)
    net = Images(lambda: Conv(VALUES[name], before=True)).eval()
    chain = trace(net, torch.randn(2, 3, 12, 12))
    assert not any(block.removable for block in chain)
    assert all(
        "depend on the sizes or the values" in block.reason or "decides" in block.reason or "not run" in block.reason
        for block in chain
    ), [block.reason for block in chain]


class Handing(nn.Module):
    """A block that leaves something behind in its own way, and a network that picks it up."""

    def __init__(self, leave, take):
        super().__init__()
        self.leave, self.take, self.kept = leave, take, {}
        self.stem = nn.Linear(4, 6)
        self.blocks = nn.ModuleList(Linear(lambda x: x) for _ in range(4))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x)
        for number, block in enumerate(self.blocks):
            entering, x = x, block(x)
            if number == 1:
                self.leave(self, block, entering, x)
        return self.take(self, self.head(x))


class Keeping(Linear):
    def forward(self, x):
        self.last = super().forward(x)
        return self.last


class Counting(Linear):
    def forward(self, x):
        self.scale = float(x.abs().mean())
        return super().forward(x)


def test_an_attribute_that_the_network_returns():
    net = Handing(lambda *_: None, lambda net, y: (y, net.blocks[1].last))
    net.blocks[1] = Keeping(lambda x: x)
    block = trace(net.eval(), torch.randn(3, 4))["blocks.1"]
    assert not block.removable
    assert "another way" in block.reason or "not run" in block.reason


def test_an_attribute_kept_outside():
    class Elsewhere(Linear):
        def forward(self, x):
            self.notes["last"] = super().forward(x)
            return self.notes["last"]

    notes = {}
    net = Handing(lambda *_: None, lambda net, y: y + notes["last"].mean())
    net.blocks[1] = Elsewhere(lambda x: x)
    net.blocks[1].notes = notes
    chain = trace(net.eval(), torch.randn(3, 4))
    assert [block.removable for block in chain] == [True, False, True, True]
    assert "another way" in chain["blocks.1"].reason


def test_a_number_kept_outside():
    notes = {}

    class Counted(Linear):
        def forward(self, x):
            notes["scale"] = float(x.abs().mean())
            return super().forward(x)

    class Scaling(Linear):
        def forward(self, x):
            return x + notes["scale"] * torch.tanh(self.linear(x))

    net = Handing(lambda *_: None, lambda net, y: y)
    net.blocks[1], net.blocks[2] = Counted(lambda x: x), Scaling(lambda x: x)
    chain = trace(net.eval(), torch.randn(3, 4))
    assert not chain["blocks.1"].removable
    assert "passes on beside its output" in chain["blocks.1"].reason


def test_features_of_the_caller_are_no_side_reads():
    net = Handing(lambda net, block, x, y: net.kept.update(y=y), lambda net, y: (y, net.kept["y"].mean()))
    assert all(block.removable for block in trace(net.eval(), torch.randn(3, 4)))


def test_a_network_that_draws_numbers_is_left_alone():
    net = Images(lambda: Conv(lambda x, o: x + torch.randn_like(x))).eval()
    trace(net, torch.randn(2, 3, 8, 8))
    state = torch.get_rng_state()
    trace(net, torch.randn(2, 3, 8, 8, generator=torch.Generator()))
    assert torch.equal(state, torch.get_rng_state())


def test_what_follows_sizes_survives_a_copy():
    net = Images(lambda: Conv(*IMAGES["centre crop"][:1], padding=0)).eval()
    cut = copy.deepcopy(remove_blocks(net, as_batch(torch.randn(2, 3, 12, 12)), ["blocks.0"]))
    x = torch.randn(3, 3, 20, 15)
    assert torch.allclose(cut(x), shortcut_alone(net, "blocks.0", x), atol=1e-5)
