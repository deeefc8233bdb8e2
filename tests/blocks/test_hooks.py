"""A user's hook is lost with the module that carries it, so that module stays; hooks of frameworks go with theirs."""

import functools

import pytest
import torch
from torch import nn

from shoal.batches import as_batch
from shoal.blocks import analyze, trace
from shoal.blocks.hooks import hook_reason
from shoal.blocks.module_replacements import unit_replacements
from shoal.errors import SurgeryError
from shoal.replace.segments import build_segments
from shoal.surgery import remove_blocks


class Block(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.first, self.last = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.last(torch.relu(self.first(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Grab(nn.Module):
    """The network's answer comes from what a hook kept."""

    def __init__(self):
        super().__init__()
        self.net, self.head, self.feature = Net(), nn.Linear(8, 2), None
        self.net.blocks[2].register_forward_hook(self.keep)

    def keep(self, module, args, output):
        self.feature = output

    def forward(self, x):
        self.net(x)
        return self.head(self.feature)


class Hook:
    def __call__(self, module, args, *rest):
        return None


def with_kwargs(module, args, kwargs, *rest):
    return None


REGISTER = {
    "forward": lambda module: module.register_forward_hook(lambda *_: None),
    "forward with kwargs": lambda module: module.register_forward_hook(with_kwargs, with_kwargs=True),
    "in front": lambda module: module.register_forward_pre_hook(Hook()),
    "in front with kwargs": lambda module: module.register_forward_pre_hook(with_kwargs, with_kwargs=True),
    "backward": lambda module: module.register_full_backward_hook(functools.partial(with_kwargs, None)),
    "in front of backward": lambda module: module.register_full_backward_pre_hook(Hook()),
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("register", REGISTER.values(), ids=REGISTER)
def test_a_block_with_a_hook_stays(register, inside):
    net, x = Net(), torch.randn(3, 8)
    block = net.blocks[1]
    handle = register(block.first if inside else block)
    chain = trace(net, x)
    assert [one.removable for one in chain] == [True, False, True, True]
    assert "hook" in chain["blocks.1"].reason
    assert "remove the hook first" in chain["blocks.1"].reason
    with pytest.raises(SurgeryError, match=r"blocks\.1.*hook"):
        remove_blocks(net, as_batch(x), ["blocks.1"])
    handle.remove()
    assert trace(net, x)["blocks.1"].removable


def test_a_feature_taken_by_a_hook():
    net, x = Grab().eval(), torch.randn(4, 8)
    block = trace(net, x)["net.blocks.2"]
    assert not block.removable
    assert "Grab.keep" in block.reason
    cut = remove_blocks(net, as_batch(x), ["net.blocks.1"])
    assert not torch.equal(cut(x[:1]), cut(x[1:2]))


def test_hooks_of_frameworks_go_with_their_module():
    net, x = Net(), torch.randn(3, 8)
    nn.utils.spectral_norm(net.blocks[0].first)
    nn.utils.weight_norm(net.blocks[1].first)
    nn.utils.parametrizations.weight_norm(net.blocks[2].first)
    assert all(block.removable for block in trace(net, x))
    pytest.importorskip("accelerate").hooks.add_hook_to_module(
        net.blocks[3], pytest.importorskip("accelerate").hooks.AlignDevicesHook()
    )
    assert hook_reason(net.blocks[3], "blocks.3") is None


def test_a_unit_with_a_hook_stays():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.mlp = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            x = x + self.attention(x)
            return x + self.mlp(x)

    net, x = nn.Sequential(Layer(), Layer(), nn.Linear(8, 2)), torch.randn(3, 8)
    net[0].mlp.register_forward_hook(lambda *_: None)
    anatomy = analyze(net, as_batch(x))
    with pytest.raises(SurgeryError, match=r"unit 1 of '0' cannot be removed: '0\.mlp' carries a forward hook"):
        unit_replacements(anatomy, "0", [1])
    assert unit_replacements(anatomy, "0", [0])


def test_a_layer_with_a_hook_bounds_the_spans_of_a_plain_network():
    net, x = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5))), torch.randn(3, 8)
    net[2].register_forward_hook(lambda module, args, output: output * 2)
    line = build_segments(analyze(net, as_batch(x)))
    assert line.paths == ("0", "1", "3", "4")
    assert line.follows == (False, True, False, True)
