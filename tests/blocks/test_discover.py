import copy
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import networks
from shoal.batches import Batch, as_batch
from shoal.blocks import analyze, trace
from shoal.errors import ModelRaisedError, NonFiniteError, TraceError
from shoal.scanning import removal_sweep
from shoal.surgery import remove_blocks

IMAGES = (2, 3, 64, 64)
NO_SHORTCUT = "it has no shortcut: nothing would be left of it"


def torchvision(name, **kwargs):
    def make():
        models = pytest.importorskip("torchvision").models
        return models.get_model(name, weights=None, **kwargs)

    return make


def timm(name):
    return lambda: pytest.importorskip("timm").create_model(name)


def transformers(config, model, **kwargs):
    def make():
        library = pytest.importorskip("transformers")
        return getattr(library, model)(getattr(library, config)(**kwargs))

    return make


def tokens():
    return {"input_ids": torch.randint(0, 50, (2, 7))}


@dataclass
class Expected:
    make: object
    example: object
    shortcuts: str  # i identity, r reshape, p projection, - none
    stages: str
    first: str
    last: str
    ends: tuple  # shape of the stream before the first and behind the last block
    activation: str | None = None
    units: int = 1
    reasons: dict = field(default_factory=dict)


def images():
    return torch.randn(IMAGES)


FIFTY = {"shortcuts": "piipiiipiiiiipii", "stages": "1112222333333444"}
SMALL = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
TWENTY = Expected(
    networks.resnet20,
    lambda: torch.randn(2, 3, 32, 32),
    "iiiriirii",
    "111222333",
    "layer1.0",
    "layer3.2",
    ((16, 32, 32), (64, 8, 8)),
    "relu",
)
RESNET50 = Expected(
    torchvision("resnet50"), images, **FIFTY, first="layer1.0", last="layer4.2", ends=((64, 16, 16), (2048, 2, 2))
)

TABLE = {
    "cifar": TWENTY,
    "resnet18": Expected(
        torchvision("resnet18"),
        images,
        "iipipipi",
        "11223344",
        "layer1.0",
        "layer4.1",
        ((64, 16, 16), (512, 2, 2)),
        "relu",
    ),
    "resnet50": Expected(**{**vars(RESNET50), "activation": "relu"}),
    "wide_resnet50_2": Expected(**{**vars(RESNET50), "make": torchvision("wide_resnet50_2"), "activation": "relu"}),
    "resnext50": Expected(**{**vars(RESNET50), "make": torchvision("resnext50_32x4d"), "activation": "relu"}),
    "mobilenet_v2": Expected(
        torchvision("mobilenet_v2"),
        images,
        "--i-ii-iii-ii-ii-",
        "12233344445556667",
        "features.1",
        "features.17",
        ((32, 32, 32), (320, 2, 2)),
        reasons={f"features.{i}": NO_SHORTCUT for i in (1, 2, 4, 7, 11, 14, 17)},
    ),
    "vit_b_16": Expected(
        torchvision("vit_b_16", image_size=64),
        images,
        "i" * 12,
        "1" * 12,
        "encoder.layers.encoder_layer_0",
        "encoder.layers.encoder_layer_11",
        ((17, 768), (17, 768)),
        units=2,
    ),
    "timm resnet26": Expected(
        timm("resnet26"),
        images,
        "pipipipi",
        "11223344",
        "layer1.0",
        "layer4.1",
        ((64, 16, 16), (2048, 2, 2)),
        "relu",
    ),
    "timm resnetv2_50": Expected(
        **{**vars(RESNET50), "make": timm("resnetv2_50"), "first": "stages.0.blocks.0", "last": "stages.3.blocks.2"}
    ),
    "module list": Expected(
        networks.PreactNet,
        lambda: torch.randn(2, 1, 6, 6),
        "iiii",
        "1111",
        "blocks.0",
        "blocks.3",
        ((8, 6, 6), (8, 6, 6)),
    ),
    "numbered attributes": Expected(
        networks.NumberedNet, lambda: torch.randn(2, 4), "iii", "111", "block1", "block3", ((8,), (8,))
    ),
    "shared": Expected(
        networks.SharedNet,
        lambda: torch.randn(2, 4, 5, 5),
        "iiii",
        "1111",
        "first",
        "blocks.3",
        ((4, 5, 5), (4, 5, 5)),
        reasons={"blocks.0": "it is called 2 times, so it cannot go in one place and stay in another"},
    ),
    "torch encoder": Expected(
        networks.PostNormNet,
        lambda: torch.randn(2, 5, 8),
        "iii",
        "111",
        "encoder.layers.0",
        "encoder.layers.2",
        ((5, 8), (5, 8)),
        "layer_norm",
        units=2,
        reasons={
            "encoder.layers.0": "the network does not run without it: its shortcut has no attribute 'self_attn', which "
            "the code that calls the blocks reads; remove another block instead, or call the blocks in a loop that "
            "reads nothing of them"
        },
    ),
    "llama": Expected(
        transformers("LlamaConfig", "LlamaForCausalLM", num_key_value_heads=1, **SMALL),
        tokens,
        "iii",
        "111",
        "model.layers.0",
        "model.layers.2",
        ((7, 16), (7, 16)),
        units=2,
    ),
    "gpt2": Expected(
        transformers(
            "GPT2Config",
            "GPT2LMHeadModel",
            vocab_size=50,
            n_positions=16,
            n_embd=16,
            n_layer=3,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
        ),
        tokens,
        "iii",
        "111",
        "transformer.h.0",
        "transformer.h.2",
        ((7, 16), (7, 16)),
        units=2,
    ),
    "bert": Expected(
        transformers("BertConfig", "BertForSequenceClassification", max_position_embeddings=16, **SMALL),
        tokens,
        "iii",
        "111",
        "bert.encoder.layer.0",
        "bert.encoder.layer.2",
        ((7, 16), (7, 16)),
        "layer_norm",
        units=2,
    ),
}
LETTERS = {"identity": "i", "reshape": "r", "projection": "p", None: "-"}


@pytest.mark.parametrize("name", TABLE)
def test_the_chain_of_a_known_network(name):
    expected = TABLE[name]
    chain = trace(expected.make(), expected.example())
    residual = [block for block in chain if block.shortcut]
    assert "".join(LETTERS[block.shortcut] for block in chain) == expected.shortcuts
    assert "".join(str(block.stage) for block in chain) == expected.stages
    assert (chain.paths[0], chain.paths[-1]) == (expected.first, expected.last)
    assert (chain.blocks[0].in_shape, chain.blocks[-1].out_shape) == expected.ends
    assert {block.activation for block in residual} == {expected.activation}
    assert {len(block.units) for block in residual} == {expected.units}
    assert {block.path: block.reason for block in chain if not block.removable} == expected.reasons
    assert all((block.reason is None) == block.removable for block in chain)
    assert all(block.params > 0 for block in chain)
    assert chain.note is None
    for one, following in zip(chain.blocks, chain.blocks[1:], strict=False):
        assert one.out_shape == following.in_shape or name == "shared"


def test_the_branch_of_a_block_is_told_from_its_projection():
    block = trace(TABLE["resnet18"].make(), images())["layer2.0"]
    assert block.branch == tuple(f"layer2.0.{part}" for part in ("conv1", "bn1", "conv2", "bn2"))
    assert block.shortcut == "projection"


def test_the_activation_may_go_where_the_stream_is_never_negative():
    chain = trace(networks.CifarResNet(2), torch.randn(1, 3, 8, 8))
    assert all("never negative" in block.removable_activation_assumption for block in chain)
    preact = trace(networks.PreactNet(), torch.randn(1, 1, 6, 6))
    assert all(block.removable_activation_assumption is None for block in preact)


def test_units_know_where_they_stand():
    chain = trace(networks.NumberedNet(), torch.randn(2, 4))
    (unit,) = chain["block1"].units
    assert (unit.addition, unit.stream_first, unit.path) == (1, False, "block1")  # addition 0 is the GELU's
    attention, mlp = trace(TABLE["bert"].make(), tokens())["bert.encoder.layer.1"].units
    assert attention.path == "bert.encoder.layer.1.attention"
    assert all("attention" in path for path in attention.branch)
    assert not any("attention" in path for path in mlp.branch)


def test_a_plain_chain_says_so():
    chain = trace(networks.PlainNet(), torch.randn(1, 1, 8, 8))
    assert len(chain) == 0
    assert "no residual block" in chain.note


def plus(self, x):
    return x + self.fc(x)


class Stranger(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.call = forward

    def forward(self, *args, **kwargs):
        return self.call(self, *args, **kwargs)


class Net(nn.Module):
    """Three strange blocks in a row, and how they are called."""

    def __init__(self, forward, call=lambda block, x: block(x)):
        super().__init__()
        self.blocks = nn.ModuleList(Stranger(forward) for _ in range(3))
        self.head = nn.Linear(4, 2)
        self.call = call

    def forward(self, x):
        for block in self.blocks:
            x = self.call(block, x)
        return self.head(x)


def masked(self, hidden_states, mask=None):
    return hidden_states + self.fc(hidden_states) * mask


def with_aux(self, x):
    f = self.fc(x)
    return x + f, f.mean()


@pytest.mark.parametrize(
    ("forward", "call"),
    [
        (plus, lambda block, x: block(x)),
        (masked, lambda block, x: block(hidden_states=x, mask=torch.ones(4))),
        (masked, lambda block, x: block(x, mask=torch.ones(4))),
        (lambda self, x: (plus(self, x),), lambda block, x: block(x)[0]),
        (lambda self, x: [plus(self, x), None], lambda block, x: block(x)[0]),
        (lambda self, x: {"x": plus(self, x), "flag": True}, lambda block, x: block(x)["x"]),
        (with_aux, lambda block, x: block(x)[0]),
    ],
    ids="plain keywords mixed tuple list dict unread".split(),
)
def test_blocks_may_be_called_and_answer_as_they_like(forward, call):
    chain = trace(Net(forward, call), torch.randn(2, 4))
    assert [block.removable for block in chain] == [True] * 3


class ReadsElsewhere(Net):
    def forward(self, x):
        total = 0
        for block in self.blocks:
            x, aux = block(x)
            total = total + aux
        return self.head(x) + total


def test_a_second_output_that_is_read_keeps_the_block():
    chain = trace(ReadsElsewhere(with_aux), torch.randn(2, 4))
    assert {block.reason for block in chain} == {"it has a second output that is read elsewhere"}
    assert "no removable block" in chain.note


class TwoStreams(nn.Module):
    """Blocks that add to two streams, both of which go on."""

    def __init__(self, depth=3):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.blocks = nn.ModuleList(TwoBranches() for _ in range(depth))

    def forward(self, x):
        x, y = self.first(x), self.second(x)
        for block in self.blocks:
            x, y = block(x, y)
        return self.head(x * y)


class TwoBranches(nn.Module):
    def __init__(self):
        super().__init__()
        self.f, self.g = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, y):
        return x + torch.tanh(self.f(x)), y + torch.tanh(self.g(y))


def test_a_second_output_that_is_a_stream_goes_on_without_the_block():
    torch.manual_seed(0)
    model, x = TwoStreams().eval(), torch.randn(2, 4)
    graph = analyze(model, as_batch(x))
    assert [block.removable for block in graph.chain] == [True] * 3
    cut = remove_blocks(model, as_batch(x), ["blocks.1"])
    expected = copy.deepcopy(model)
    del expected.blocks[1]
    assert torch.equal(cut(x), expected(x))
    [worth] = removal_sweep(graph, [as_batch(x)], ["blocks.1"])
    with torch.no_grad():
        error = (expected(x) - model(x)).double().square().mean() / model(x).double().var(0, correction=0).mean()
    assert worth.damage == pytest.approx(float(error), rel=1e-5)


class CrossingStreams(nn.Module):
    """The second stream begins with the first, and each block adds to it what it made of the first."""

    def __init__(self, cross, depth=3):
        super().__init__()
        self.first, self.lift, self.head = nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(6, 2)
        self.blocks = nn.ModuleList(CrossingBranches(cross) for _ in range(depth))

    def forward(self, x):
        x = self.first(x)
        y = self.lift(x)
        for block in self.blocks:
            x, y = block(x, y)
        return self.head(y)


class CrossingBranches(nn.Module):
    def __init__(self, cross):
        super().__init__()
        self.cross, self.f, self.g, self.h = cross, nn.Linear(4, 4), nn.Linear(6, 6), nn.Linear(6, 6)
        self.norm, self.proj = nn.LayerNorm(4), nn.Linear(4, 6)

    def forward(self, x, y, skipped=()):
        x = x if 0 in skipped else x + torch.tanh(self.f(x))
        y = self.cross(y, self.proj(self.norm(x)))
        y = y if 1 in skipped else y + torch.tanh(self.g(y))
        return x, y if 2 in skipped else y + torch.tanh(self.h(y))


CROSSINGS = {
    "sum": lambda y, of_x: y + of_x,
    "sum, the other way round": lambda y, of_x: of_x + y,
    "a part of the stream": lambda y, of_x: torch.cat([y[:, :1], y[:, 1:] + of_x[:, 1:]], dim=1),
    "behind an activation": lambda y, of_x: y + torch.relu(of_x),
}


@pytest.mark.parametrize("skipped", [(0, 1, 2), (0,), (1,), (2,)], ids="block first second third".split())
@pytest.mark.parametrize("cross", CROSSINGS.values(), ids=CROSSINGS)
def test_what_one_stream_adds_to_another_stays_without_the_block(cross, skipped):
    torch.manual_seed(0)
    model, x = CrossingStreams(cross).eval(), torch.randn(2, 4)
    chain = trace(model, x)
    assert [(block.removable, len(block.units)) for block in chain] == [(True, 3)] * 3
    names = ["blocks.1"] if len(skipped) == 3 else [f"blocks.1#{unit}" for unit in skipped]
    cut = remove_blocks(model, as_batch(x), names)
    expected = copy.deepcopy(model)
    expected.blocks[1].forward = partial(expected.blocks[1].forward, skipped=skipped)
    assert torch.equal(cut(x), expected(x))
    assert not torch.equal(cut(x), model(x))


def test_a_second_output_that_the_network_returns_keeps_the_block():
    class Returns(Net):
        def forward(self, x):
            x, aux = self.blocks[0](x)
            return self.head(x), aux

    (block,) = trace(Returns(with_aux), torch.randn(2, 4))
    assert block.reason == "it has a second output that is read elsewhere"


def test_a_tensor_smuggled_out_of_a_block_keeps_it():
    def smuggling(self, x):
        self.kept = self.fc(x)
        return x + self.kept

    class Reads(Net):
        def forward(self, x):
            x = self.blocks[0](x)
            return self.head(x) + self.blocks[0].kept.mean()

    (block,) = trace(Reads(smuggling), torch.randn(2, 4))
    assert block.reason == "what is computed inside it is read elsewhere"


def test_a_result_that_python_cannot_write_down_keeps_the_block():
    chain = trace(Net(lambda self, x: (plus(self, x), {1}), lambda block, x: block(x)[0]), torch.randn(2, 4))
    assert {block.reason for block in chain} == {"it returns a set"}


def test_an_addition_in_the_forward_of_the_network_is_listed():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.a(x)
            return x + self.b(x)

    (block,) = trace(Flat(), torch.randn(2, 4))
    assert (block.path, block.removable) == ("", False)
    assert "in the forward of the whole network" in block.reason


def test_a_batch_size_written_into_a_shortcut_is_followed():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return x.unflatten(0, (x.shape[0], 1)).flatten(0, 1) + self.fc(x)

    shortcuts = analyze(nn.Sequential(Fixed(), Fixed()), Batch((torch.randn(2, 4),))).shortcut_modules
    for samples in (1, 2, 5):
        x = torch.randn(samples, 4)
        assert torch.equal(shortcuts["1"](x), x)


def test_one_block_that_is_asked_for_its_parts_does_not_hold_the_rest():
    class Asking(Net):
        def forward(self, x):
            x = x * self.blocks[1].fc.weight.abs().max()
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    chain = trace(Asking(plus), torch.randn(2, 4))
    assert [block.removable for block in chain] == [True, False, True]
    assert "has no attribute 'fc'" in chain["blocks.1"].reason


def test_two_branches_beside_one_stream_are_two_units():
    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return x + self.a(x) + self.b(x)

    net = nn.Sequential(nn.Linear(4, 4), Parallel(), Parallel())
    chain = trace(net, torch.randn(2, 4))
    assert [len(block.units) for block in chain] == [2, 2]
    assert isinstance(analyze(net, as_batch(torch.randn(2, 4))).shortcut_modules["1"], nn.Identity)


def test_the_network_itself_may_be_in_training_and_branch_on_its_input():
    class Branching(networks.NumberedNet):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    assert len(trace(Branching().train(), torch.randn(2, 4)).removable) == 3


def test_broken_weights_are_named_before_anything_runs():
    net = networks.NumberedNet()
    with torch.no_grad():
        net.block2.fc1.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"1 of 128 values of 'block2\.fc1\.weight'"):
        trace(net, torch.randn(2, 4))


def test_what_a_model_raises_names_the_shape_it_was_given():
    with pytest.raises(ModelRaisedError, match=r"shape \(2, 5\) torch.float32"):
        trace(networks.NumberedNet(), torch.randn(2, 5))


def test_a_network_that_ignores_its_input_is_refused():
    with pytest.raises(TraceError, match="depends on its input"):
        trace(Stranger(lambda self, x: self.fc(torch.ones(4))), torch.randn(2, 4))


def test_functional_dropout_and_relu_after_the_addition_are_named():
    def forward(self, x):
        return F.dropout(F.gelu(x + self.fc(x)), 0.1, self.training)

    chain = trace(Net(forward), torch.randn(2, 4))
    assert {block.activation for block in chain} == {"gelu"}


class SharedPositions(nn.Module):
    """A block that adds the positions of a module that it shares with the others."""

    def __init__(self, positions):
        super().__init__()
        self.shared = positions
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return x + self.norm(self.shared(x))


class SharingPositions(nn.Module):
    def __init__(self):
        super().__init__()
        self.positions = nn.Conv2d(4, 4, 3, padding=1)
        self.blocks = nn.Sequential(*(SharedPositions(self.positions) for _ in range(3)))

    def forward(self, x):
        return self.blocks(x)


def test_a_module_that_blocks_share_is_named_by_its_path_outside_of_them():
    chain = trace(SharingPositions(), torch.randn(2, 4, 8, 8))
    assert [block.branch for block in chain] == [("positions", f"blocks.{index}.norm") for index in range(3)]


class LazyTable(nn.Module):
    """A block that makes its table of positions in the first run and keeps it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.table = None

    def forward(self, x):
        if self.table is None:
            steps = torch.arange(4.0)
            self.table = steps + steps.flip(0)
        return x + self.linear(x) * self.table


def test_what_a_block_does_in_its_first_run_alone_is_no_part_of_it():
    chain = trace(nn.Sequential(LazyTable(), LazyTable()), torch.randn(2, 4))
    assert [block.units[0].addition for block in chain] == [0, 0]


class ReshapingShortcut(nn.Module):
    """A block whose shortcut writes the number of samples into a reshape."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        samples, channels, height, width = x.shape
        stream = x.transpose(1, 2).contiguous().view(samples, height, channels * width).tanh()
        return (stream + self.linear(stream)).view(samples, height, channels, width).transpose(1, 2)


def test_a_shortcut_that_is_reshaped_bears_any_number_of_samples():
    block = trace(nn.Sequential(ReshapingShortcut(), nn.ReLU()), torch.randn(2, 2, 4, 3))["0"]
    assert (block.removable, block.reason) == (True, None)


class WithParts(nn.Module):
    """A block whose parts are numbered and have additions of their own, between those of the block."""

    def __init__(self, width):
        super().__init__()
        self.pos1, self.pos2 = Positions(width), Positions(width)
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        x = self.pos1(x)
        x = x + self.up(x)
        x = self.pos2(x)
        return x + self.down(x)


class Positions(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        return x + self.proj(x)


def test_numbered_parts_of_alike_blocks_are_no_chain():
    model = nn.Sequential(*(WithParts(4) for _ in range(3)))
    chain = analyze(model, Batch((torch.randn(2, 4),))).chain
    assert chain.paths == ["0", "1", "2"]
    assert [len(block.units) for block in chain] == [4, 4, 4]


def test_a_module_alone_of_its_class_with_numbered_parts_is_no_block():
    chain = analyze(nn.Sequential(WithParts(4)), Batch((torch.randn(2, 4),))).chain
    assert [path for path in chain.paths if "pos" in path] == ["0.pos1", "0.pos2"]


@pytest.mark.parametrize(
    ("make", "kind"),
    [(lambda y: None, "NoneType"), (lambda y: y.sum().item(), "float"), (lambda y: {"a": y.tolist()}, "dict")],
)
def test_an_output_without_tensors_is_named(make, kind):
    class Mute(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return make(self.layer(x))

    with pytest.raises(TraceError, match=rf"no tensor that depends on its input \(it returned {kind}\)"):
        trace(Mute(), torch.randn(2, 4))
