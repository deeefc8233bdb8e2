import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

import networks
from shoal.batches import Batch, call
from shoal.blocks import analyze, prefix_cache
from shoal.blocks.prefix_cache import PrefixCache, restart_notes
from shoal.errors import ModelRaisedError
from shoal.preserve import evaluating, swapped


class Overwriting(nn.Module):
    """Between the blocks somebody writes into their outputs; blocks change their own input in place."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            x += F.relu(self.conv(x))
            return x

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.ModuleList(self.Block() for _ in range(4))
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number == 1:
                x.mul_(0.5)
        return self.head(F.relu_(x).mean(dim=(2, 3)))


class Skipping(nn.Module):
    """The head reads an early block as well."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(networks.PreactBlock(3) for _ in range(4))
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        kept = []
        for block in self.blocks:
            x = block(x)
            kept.append(x)
        return self.head(torch.cat([kept[0].mean(dim=(2, 3)), x.mean(dim=(2, 3))], dim=1))


def token_net():
    library = pytest.importorskip("transformers")
    config = library.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=16, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return library.GPT2LMHeadModel(config)


def resnet18():
    return pytest.importorskip("torchvision").models.resnet18(weights=None, num_classes=7)


def pixels(size, channels=3):
    return lambda: torch.randn(3, channels, size, size)


NETWORKS = {
    "cifar": (lambda: networks.CifarResNet(2, widths=(4, 8, 12)), pixels(8)),
    "torchvision": (resnet18, pixels(32)),
    "pre-activation": (networks.PreactNet, pixels(6, 1)),
    "numbered": (networks.NumberedNet, lambda: torch.randn(3, 4)),
    "shared": (networks.SharedNet, pixels(5, 4)),
    "overwriting": (Overwriting, pixels(6)),
    "skipping": (Skipping, pixels(6)),
    "tokens": (token_net, lambda: {"input_ids": torch.randint(0, 50, (3, 7))}),
}


def batch_of(example):
    return Batch((), example) if isinstance(example, dict) else Batch((example,))


def logits(output):
    return getattr(output, "logits", output)


def prepared(name):
    make, example = NETWORKS[name]
    torch.manual_seed(2)
    net = networks.randomised(make())
    return analyze(net, batch_of(example())), batch_of(example())


def physically(graph, batch, paths):
    cut = copy.deepcopy(graph)
    for path in paths:
        cut.model.set_submodule(path, cut.shortcut_modules[path])
    with evaluating(cut.model):
        return logits(cut.model(*batch.args, **batch.kwargs)).clone()


@pytest.mark.parametrize("name", NETWORKS)
def test_removal_from_memory_is_bitwise_physical_removal(name):
    graph, batch = prepared(name)
    paths = list(graph.shortcut_modules)
    assert len(paths) >= 3
    prefix = PrefixCache(graph)
    with evaluating(graph.model):
        whole = logits(prefix.record(batch)).clone()
        for path in [*paths, *reversed(paths)]:  # a run must not spoil what later runs read from memory
            found = logits(prefix.run_without(path, graph.shortcut_modules[path]))
            assert torch.equal(found, physically(graph, batch, [path]))
            assert not torch.equal(found, whole)
        assert torch.equal(logits(prefix.record(batch)), whole)
    assert torch.equal(whole, physically(graph, batch, []))


@pytest.mark.parametrize("name", ["cifar", "overwriting", "pre-activation", "tokens"])
@pytest.mark.parametrize("place", [0, 1, -1])
def test_blocks_that_are_gone_already_stay_gone(name, place):
    graph, batch = prepared(name)
    rest = list(graph.shortcut_modules)
    gone = rest.pop(place)
    prefix = PrefixCache(graph, {gone: graph.shortcut_modules[gone].forward})
    with evaluating(graph.model):
        assert torch.equal(logits(prefix.record(batch)), physically(graph, batch, [gone]))
        for path in rest:
            found = logits(prefix.run_without(path, graph.shortcut_modules[path]))
            assert torch.equal(found, physically(graph, batch, [gone, path]))


def test_only_what_comes_after_the_change_runs_again():
    graph, batch = prepared("cifar")
    prefix = PrefixCache(graph)
    names = {parameter: name for name, parameter in graph.model.named_parameters()}
    ran = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is torch.conv2d:
                ran.append(names[args[1]])
            return func(*args, **(kwargs or {}))

    with evaluating(graph.model):
        prefix.record(batch)
        with Watch():
            prefix.run_without("layer3.0", graph.shortcut_modules["layer3.0"])
    assert ran == ["layer3.1.conv1.weight", "layer3.1.conv2.weight"]


def test_another_module_may_stand_anywhere_in_a_segment():
    graph, batch = prepared("cifar")
    net = graph.model
    conv = net.layer2[1].conv2
    prefix = PrefixCache(graph)
    assert prefix.segment_of("layer2.1.conv2") == "layer2.1"
    with evaluating(net):
        prefix.record(batch)
        found = prefix.run_from("layer2.1", {conv: torch.zeros_like})
        kept, conv.weight.data = conv.weight.data, torch.zeros_like(conv.weight)
        assert torch.equal(found, net(*batch.args))
        conv.weight.data = kept


def test_a_run_needs_a_recording():
    graph, _ = prepared("numbered")
    with pytest.raises(RuntimeError, match="record"):
        PrefixCache(graph).run_without("block1", graph.shortcut_modules["block1"])


def test_nothing_stays_on_the_model_when_it_raises():
    graph, batch = prepared("cifar")

    def fails(x):
        raise ValueError("on purpose")

    prefix = PrefixCache(graph)
    with evaluating(graph.model):
        expected = prefix.record(batch)
        with pytest.raises(ModelRaisedError, match="on purpose"):
            prefix.run_from("layer2.0", {graph.model.layer2[0]: fails})
        with pytest.raises(ModelRaisedError, match="raised RuntimeError"):
            prefix.record(Batch((torch.randn(1, 5, 8, 8),)))
        assert not any(module._forward_hooks for module in graph.model.modules())
        assert not any("forward" in vars(module) for module in graph.model.modules())
        assert torch.equal(graph.model(*batch.args), expected)


class Opened(nn.Module):
    """A block that holds blocks in a numbered container."""

    def __init__(self, width):
        super().__init__()
        self.parts = nn.ModuleList(Inner(width) for _ in range(2))
        self.up = nn.Linear(width, width)

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return x + self.up(x)


class Inner(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        return x + self.proj(x)


def test_a_block_that_holds_blocks_can_be_run_without_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Opened(4), nn.Linear(4, 2)).eval()
    batch = Batch((torch.randn(3, 4),))
    graph = analyze(model, batch)
    assert graph.chain["1"].reason == "it holds other blocks, which are removed one by one"
    assert [block.path for block in graph.chain.removable] == ["1.parts.0", "1.parts.1"]
    prefix = PrefixCache(graph)
    with torch.no_grad():
        prefix.record(batch)
        found = prefix.run_from(prefix.segment_of("1"), {model[1]: lambda x: x})
        assert torch.equal(found, model[2](model[0](batch.args[0])))


class Deep(nn.Module):
    """A stem, blocks, and a head that reads the output of one block in the middle as well."""

    def __init__(self, depth):
        super().__init__()
        self.stem, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.blocks = nn.ModuleList([Adding() for _ in range(depth)])
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        x, middle = self.stem(x), None
        for number, block in enumerate(self.blocks):
            x = block(x)
            middle = x if number == 4 else middle
        return self.head(x + middle)


class Adding(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.calls = nn.Linear(4, 4), 0

    def forward(self, x):
        self.calls += 1
        return x + torch.tanh(self.inner(x))


def test_a_deep_network_is_run_from_a_few_places_and_keeps_what_lies_in_front_of_them(monkeypatch):
    monkeypatch.setattr(prefix_cache, "MAX_PLACES", 6)
    torch.manual_seed(0)
    net = Deep(28).eval()  # with stem and head 30 segments: every fifth is a place
    graph = analyze(net, Batch((torch.randn(2, 4),)))
    before = net.calls
    with evaluating(net):
        prefix, batch = PrefixCache(graph), Batch((torch.randn(3, 4),))
        whole = prefix.record(batch)
        assert net.calls - before == 4 + 6  # on a sample, again, on other values, from each place; then the batch
        assert set(graph.restarts.values()) == {"stem", *(f"blocks.{number}" for number in (4, 9, 14, 19, 24))}
        stored = {path for path, output in prefix.outputs.items() if output.stride() != (0, 0)}
        assert stored == {f"blocks.{number}" for number in (3, 4, 8, 13, 18, 23, 27)} | {"head"}
        ran = [block.calls for block in net.blocks]
        assert torch.equal(prefix.run_from("blocks.21", {}), whole)
        assert [now - then for now, then in zip((block.calls for block in net.blocks), ran, strict=True)] == [
            0
        ] * 19 + [1] * 9
        identity = graph.shortcut_modules["blocks.21"]
        with swapped(net, {"blocks.21": identity}):
            expected = call(net, batch)
        assert torch.equal(prefix.run_without("blocks.21", identity), expected)
    assert restart_notes(graph) == []
