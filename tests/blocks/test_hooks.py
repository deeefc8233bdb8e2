"""Forward hooks of a user move from a removed block to its shortcut; others keep the block; frameworks' hooks go."""

import copy
import functools

import pytest
import torch
from torch import nn

from shoal.batches import as_batch
from shoal.blocks import analyze, trace
from shoal.blocks.hooks import hook_reason
from shoal.blocks.module_replacements import unit_replacements
from shoal.blocks.prefix_cache import PrefixCache
from shoal.errors import SurgeryError
from shoal.preserve import evaluating, swapped
from shoal.replace.segments import build_segments
from shoal.surgery import certify, remove_blocks


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


class Pass(nn.Module):
    """A block that does nothing."""

    def __init__(self, inner=None):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x if self.inner is None else self.inner(x)


def doubled_in_place(module, args, output):
    output.mul_(2)


def scaled_by_input(module, args, kwargs, output):
    return output * args[0].abs().amax() + 1


FORWARD = {
    "before": lambda module: module.register_forward_pre_hook(lambda _, args: (args[0] * 2,)),
    "before, a bare tensor": lambda module: module.register_forward_pre_hook(lambda _, args: args[0] + 1),
    "before, with kwargs": lambda module: module.register_forward_pre_hook(
        lambda _, args, kwargs: ((args[0] - 3,), kwargs), with_kwargs=True
    ),
    "behind": lambda module: module.register_forward_hook(lambda _, args, output: output * 2),
    "behind, with kwargs": lambda module: module.register_forward_hook(scaled_by_input, with_kwargs=True),
    "behind, always": lambda module: module.register_forward_hook(lambda _, args, output: -output, always_call=True),
    "behind, in place": lambda module: module.register_forward_hook(doubled_in_place),
    "behind, reads what entered": lambda module: module.register_forward_hook(lambda _, args, out: out + args[0].sin()),
}
BACKWARD = {
    "backward": lambda module: module.register_full_backward_hook(functools.partial(with_kwargs, None)),
    "in front of backward": lambda module: module.register_full_backward_pre_hook(Hook()),
}


def several(module):
    module.register_forward_pre_hook(lambda _, args: (args[0] + 1,))
    module.register_forward_pre_hook(lambda _, args: (args[0] * 3,))
    module.register_forward_hook(lambda _, args, output: output * 2)
    module.register_forward_hook(lambda _, args, output: output - 5, prepend=True)


class Projecting(Block):
    def __init__(self):
        super().__init__()
        self.skip = nn.Linear(8, 8)

    def forward(self, x):
        return self.skip(x) + self.last(torch.relu(self.first(x)))


class Activated(Block):
    def forward(self, x):
        return torch.tanh(super().forward(x))


LEFT = {
    Block: lambda block: Pass(),
    Projecting: lambda block: Pass(block.skip),
    Activated: lambda block: Pass(nn.Tanh()),
}


def hooked(block, register):
    """A network with hooks on a block, and the same network with that block passed through, hooks and all."""
    net = Net().eval()
    net.blocks[1] = block()
    passed = copy.deepcopy(net)
    passed.blocks[1] = LEFT[block](passed.blocks[1])
    register(net.blocks[1])
    register(passed.blocks[1])
    return net.eval(), passed.eval()


@pytest.mark.parametrize("block", LEFT)
@pytest.mark.parametrize("register", [*FORWARD.values(), several], ids=[*FORWARD, "several"])
def test_forward_hooks_of_a_removed_block_act_as_if_it_were_passed_through(register, block):
    net, passed = hooked(block, register)
    x, before = torch.randn(5, 8), copy.deepcopy(net.state_dict())
    expected = net(x)
    assert trace(net, x[:2])["blocks.1"].removable
    cut = remove_blocks(net, as_batch(x[:2]), ["blocks.1"])
    assert torch.equal(cut(x), passed(x))
    assert not torch.equal(cut(x), expected)
    assert torch.equal(net(x), expected)  # the original has its hooks, once
    assert net.state_dict().keys() == before.keys()


@pytest.mark.parametrize("block", LEFT)
@pytest.mark.parametrize("register", [*FORWARD.values(), several], ids=[*FORWARD, "several"])
def test_a_block_with_hooks_taken_out_for_the_time_being(register, block):
    net, passed = hooked(block, register)
    x = torch.randn(5, 8)
    graph = analyze(net, as_batch(x[:2]))
    with evaluating(net):
        prefix = PrefixCache(graph)
        assert torch.equal(prefix.record(as_batch(x)), net(x))
        assert all(path == start for path, start in graph.restarts.items())
        assert torch.equal(prefix.run_without("blocks.1", graph.shortcut_modules["blocks.1"]), passed(x))
        for path in ("blocks.2", "blocks.3"):  # a hook on a cached module acts once
            with swapped(net, {path: nn.Identity()}):
                expected = net(x)
            assert torch.equal(prefix.run_without(path, graph.shortcut_modules[path]), expected)


def test_weights_of_a_shortcut_are_named_as_without_hooks():
    net, _ = hooked(Projecting, several)
    plain = Net().eval()
    plain.blocks[1] = Projecting()
    names = [list(remove_blocks(one, as_batch(torch.randn(2, 8)), ["blocks.1"]).state_dict()) for one in (net, plain)]
    assert names[0] == names[1]


def test_a_part_of_a_block_with_hooks_keeps_its_mode():
    class Normed(Projecting):
        def __init__(self):
            super().__init__()
            self.skip = nn.BatchNorm1d(8)

    net = Net().train()
    net.blocks[1] = Normed()
    net.blocks[1].skip.eval()
    several(net.blocks[1])
    cut = remove_blocks(net, as_batch(torch.randn(4, 8)), ["blocks.1"])
    assert cut.training
    assert not cut.blocks[1].training


def test_a_dead_block_with_hooks_is_certified_away():
    net = Net().eval()
    several(net.blocks[1])
    nn.init.zeros_(net.blocks[1].last.weight)
    nn.init.zeros_(net.blocks[1].last.bias)
    x = torch.randn(6, 8)
    cut = remove_blocks(net, as_batch(x), ["blocks.1"])
    assert torch.equal(net(x), cut(x))
    assert certify(net, cut, [x]).verdict == "identical"


def test_a_hook_that_takes_features_for_its_owner_sees_the_stream():
    net, x, kept = Net().eval(), torch.randn(4, 8), []
    net.blocks[2].register_forward_hook(lambda module, args, output: kept.append(output))
    cut = remove_blocks(net, as_batch(x), ["blocks.2"])
    kept.clear()
    cut(x)
    assert len(kept) == 1
    assert torch.equal(kept[0], net.blocks[1](net.blocks[0](x)))


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("register", [*FORWARD.values(), *BACKWARD.values()], ids=[*FORWARD, *BACKWARD])
def test_a_block_with_a_hook_that_cannot_move_stays(register, inside):
    if not inside and register in FORWARD.values():
        return
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


def test_a_hook_that_asks_the_block_for_its_parts_keeps_it():
    net, x = Net(), torch.randn(3, 8)
    net.blocks[1].register_forward_hook(lambda module, args, output: output + module.first.bias)
    assert "does not run without it" in trace(net, x)["blocks.1"].reason


@pytest.mark.parametrize("returned", [False, True])
def test_a_block_stays_whose_hook_keeps_what_the_network_reads(returned):
    net, x = Grab().eval(), torch.randn(4, 8)
    if returned:
        net.head = nn.Identity()
    block = trace(net, x)["net.blocks.2"]
    assert not block.removable
    assert "reads what a forward hook on it keeps" in block.reason
    cut = remove_blocks(net, as_batch(x), ["net.blocks.1"])
    assert not torch.equal(cut(x[:1]), cut(x[1:2]))


def test_a_block_with_hooks_bounds_the_spans():
    net, x = Net(), torch.randn(3, 8)
    net.blocks[1].register_forward_hook(lambda module, args, output: output * 2)
    assert build_segments(analyze(net, as_batch(x))).paths == ("blocks.0", "blocks.2", "blocks.3")


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
    graph = analyze(net, as_batch(x))
    with pytest.raises(SurgeryError, match=r"unit 1 of '0' cannot be removed: '0\.mlp' carries a forward hook"):
        unit_replacements(graph, "0", [1])
    assert unit_replacements(graph, "0", [0])


def test_a_layer_with_a_hook_bounds_the_spans_of_a_plain_network():
    net, x = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5))), torch.randn(3, 8)
    net[2].register_forward_hook(lambda module, args, output: output * 2)
    line = build_segments(analyze(net, as_batch(x)))
    assert line.paths == ("0", "1", "3", "4")
    assert line.is_contiguous == (False, True, False, True)
