import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import halves
import networks
from families import family
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.blocks.module_replacements import removable_units, unit_replacements
from shoal.errors import SurgeryError, UnknownBlockError
from shoal.preserve import swapped


def graph_of(model, *inputs, **named):
    return analyze(model.eval(), Batch(inputs, named))


def test_a_unit_goes_with_the_modules_that_are_its_own():
    graph = graph_of(halves.Halves(), halves.samples())
    assert set(unit_replacements(graph, "blocks.1", [0])) == {"blocks.1.norm1", "blocks.1.mixer"}
    mlp = {f"blocks.1.{name}" for name in ("norm2", "fc1", "act", "fc2")}
    assert set(unit_replacements(graph, "blocks.1", [1])) == mlp
    assert set(unit_replacements(graph, "blocks.1", [1, 0])) == mlp | {"blocks.1.norm1", "blocks.1.mixer"}
    assert unit_replacements(graph, "blocks.1", [1]) is unit_replacements(graph, "blocks.1", [1])


@pytest.mark.parametrize(("unit", "name"), [(0, "mixer"), (1, "mlp")])
def test_the_outputs_are_those_of_a_network_written_without_the_unit(unit, name):
    model = halves.Halves().eval()
    graph = graph_of(model, halves.samples(2))
    expected = halves.by_hand(model, ("", name, ""))
    with torch.no_grad(), swapped(model, unit_replacements(graph, "blocks.1", [unit])):
        for count in (1, 3, 6):
            x = halves.samples(count, seed=count)
            assert torch.equal(model(x), expected(x))
        assert set(model.state_dict()) == set(expected.state_dict())


def test_the_network_is_left_as_it_was():
    model = halves.Halves().eval()
    before, names = copy.deepcopy(model.state_dict()), [name for name, _ in model.named_modules()]
    graph = graph_of(model, halves.samples())
    assert removable_units(graph, graph.chain["blocks.0"]) == [0, 1]
    assert [name for name, _ in model.named_modules()] == names
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Pair(nn.Module):
    """Two units, whose branches a test writes."""

    def __init__(self, first, second):
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.full((4,), 0.5))
        self.act = nn.ReLU(inplace=True)
        self.first, self.second = first, second

    def forward(self, x):
        x = self.first(self, x)
        return self.second(self, x)


class Line(nn.Module):
    def __init__(self, first, second):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Pair(first, second) for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def plain(block, x):
    return x + block.two(x)


def paths_of(first, second, unit, path="blocks.0"):
    graph = graph_of(Line(first, second), torch.randn(3, 4))
    return sorted(one.removeprefix(f"{path}.") for one in unit_replacements(graph, path, [unit]))


def test_what_feeds_something_else_stays():
    def shared(block, x):
        seen = block.norm(x)
        return x + block.one(seen) + block.two(seen)

    graph = graph_of(Line(shared, lambda block, x: x), torch.randn(3, 4))
    assert set(unit_replacements(graph, "blocks.0", [0])) == {"blocks.0.one"}
    assert set(unit_replacements(graph, "blocks.0", [0, 1])) == {"blocks.0.norm", "blocks.0.one", "blocks.0.two"}


def test_a_branch_may_end_in_a_product_and_change_things_in_place():
    def first(block, x):
        return x + block.scale * block.act(block.one(x))

    assert paths_of(first, plain, 0) == ["act", "one"]

    def grown(block, x):
        out = block.one(block.norm(x))
        out += x
        return out

    assert paths_of(grown, plain, 0) == ["norm", "one"]


def test_a_module_that_is_called_twice_stays():
    def first(block, x):
        return x + block.two(block.one(x))

    def second(block, x):
        return x + block.one(F.relu(x))

    assert paths_of(first, second, 0) == ["two"]


def test_a_branch_of_code_alone_is_refused():
    def first(block, x):
        return x + F.relu(x) * block.scale

    graph = graph_of(Line(first, plain), torch.randn(3, 4))
    with pytest.raises(SurgeryError, match=r"unit 0 of 'blocks\.0' cannot be removed: the block's own code"):
        unit_replacements(graph, "blocks.0", [0])
    assert removable_units(graph, graph.chain["blocks.0"]) == [1]


def test_a_branch_that_zeros_do_not_silence_is_refused():
    def first(block, x):
        return x + (block.one(x) + block.scale)

    graph = graph_of(Line(first, plain), torch.randn(3, 4))
    with pytest.raises(SurgeryError, match="something else than its modules feeds the branch"):
        unit_replacements(graph, "blocks.0", [0])


def test_units_are_named_within_the_block():
    graph = graph_of(halves.Halves(), halves.samples())
    with pytest.raises(UnknownBlockError, match="has no unit 2"):
        unit_replacements(graph, "blocks.0", [2])
    with pytest.raises(UnknownBlockError, match=r"no residual block called 'blocks\.9'"):
        unit_replacements(graph, "blocks.9", [0])
    torch.manual_seed(0)
    single = graph_of(networks.PreactNet(4, 2), torch.randn(2, 1, 8, 8))
    with pytest.raises(SurgeryError, match=r"the block 'blocks\.0' has 1 unit, not several"):
        unit_replacements(single, "blocks.0", [0])
    assert removable_units(single, single.chain["blocks.0"]) == []


def test_layers_of_torch_that_take_weights_past_their_modules():
    torch.manual_seed(0)
    model = networks.PostNormNet().eval()
    x = torch.randn(3, 5, 8)
    graph = graph_of(model, x)
    layer = model.encoder.layers[0]
    for unit in (0, 1):
        with torch.no_grad(), swapped(model, unit_replacements(graph, "encoder.layers.0", [unit])):
            found = layer(x)
        with torch.no_grad():
            left = layer.norm1(x) if unit == 0 else layer.norm1(x + layer._sa_block(x, None, None))
            expected = layer.norm2(left + layer._ff_block(left)) if unit == 0 else layer.norm2(left)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "opt", "bert", "bart", "vit"])
def test_attention_and_mlp_of_known_families(name):
    model, inputs, removed = family(name)
    graph = graph_of(model, **inputs)
    block = graph.chain[removed[0]]
    assert removable_units(graph, block) == list(range(len(block.units)))
    attention, mlp = (unit_replacements(graph, block.path, [number]) for number in (0, len(block.units) - 1))
    assert any("attn" in path or "attention" in path for path in attention)
    assert not any("attn" in path or "attention." in path for path in mlp)
