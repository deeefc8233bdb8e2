"""A folder gives back what a network computes with, also what is not in its state dict, or it is refused."""

import json
from collections import namedtuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import shoal
from shoal.errors import WeightsError
from shoal.plan import InputSpec
from shoal.store import check_savable
from shoal.store.extras import check_answers, read_extras, save_extras
from shoal.store.folder import EXTRAS, WEIGHTS

QUICK = shoal.CompressConfig(latency_seconds=0.001)


class Residual(nn.Module):
    """Computes with everything a module can hold."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.alpha = 1.0
        self.powers = (1, 2)
        self.optional = None
        self.flag = False
        self.table = torch.ones(8)
        self.hidden = {"gain": 1.0}
        self.mode = "plus"
        self.register_buffer("gain", torch.ones(8), persistent=False)

    def forward(self, x):
        branch = self.a(torch.relu(self.norm(x))) * self.alpha * self.gain * self.table * self.hidden["gain"]
        branch = branch * (self.optional or 1.0) * self.powers[1] * (3.0 if self.flag else 1.0)
        return x + branch if self.mode == "plus" else x + 2 * branch


class Net(nn.Module):
    def __init__(self, block=Residual):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(4, 8)
        self.blocks = nn.ModuleList(block() for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture
def x():
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(3))


def compressed(model, x, folder, **how):
    result = shoal.compress(model.eval(), [x], shoal.Blocks(["blocks.1"]), config=QUICK)
    result.save(folder, **how)
    return result


def same(a, b, x):
    with torch.no_grad():
        return torch.equal(a(x), b(x))


def set_(name, value):
    return lambda block: setattr(block, name, value)


KEPT = {
    "a number": set_("alpha", 3.0),
    "a number where there was none": set_("optional", 0.5),
    "a tuple": set_("powers", (1, 5)),
    "a flag": set_("flag", True),
    "a tensor": set_("table", torch.linspace(0, 1, 8)),
    "a tensor in place": lambda block: block.table.mul_(0.5),
    "a buffer in place": lambda block: block.gain.fill_(2.0),
    "another buffer": lambda block: block.register_buffer("gain", torch.linspace(0, 2, 8), persistent=False),
    "a buffer of another shape": lambda block: block.register_buffer("gain", torch.full((1,), 0.3), persistent=False),
}


@pytest.mark.parametrize("what", KEPT)
def test_state_beside_the_state_dict_comes_back(what, x, tmp_path):
    model = Net()
    for block in model.blocks:
        KEPT[what](block)
    result = compressed(model, x, tmp_path / "out", factory=Net)
    assert not same(result.model, compressed(Net(), x, tmp_path / "other").model, x), "the change changes nothing"
    for other in (Net, Net()):
        loaded = shoal.load(tmp_path / "out", model=other)
        assert same(loaded, result.model, x)
    assert loaded.blocks[0].powers == result.model.blocks[0].powers
    assert "gain" in loaded.blocks[0]._non_persistent_buffers_set


HIDDEN = {
    "in a dict": lambda block: block.hidden.update(gain=2.0),
    "in a string": set_("mode", "twice"),
}


@pytest.mark.parametrize("what", HIDDEN)
def test_state_that_cannot_be_kept_is_refused_where_it_matters(what, x, tmp_path):
    model = Net()
    HIDDEN[what](model.blocks[2])
    with pytest.raises(WeightsError, match=r"(?s)computes something else.*away.*factory build it"):
        compressed(model, x, tmp_path / "known", factory=Net)
    assert not (tmp_path / "known" / "record.json").exists()
    result = compressed(model, x, tmp_path / "out")
    with pytest.raises(WeightsError, match="computes something else"):
        shoal.load(tmp_path / "out", model=Net)
    assert not same(shoal.load(tmp_path / "out", model=Net, verify=False), result.model, x)

    def changed():
        model = Net()
        HIDDEN[what](model.blocks[2])
        return model

    assert same(shoal.load(tmp_path / "out", model=changed), result.model, x)


def test_a_factory_that_draws_what_is_in_no_state_dict(x, tmp_path):
    class Draws(Residual):
        def __init__(self):
            super().__init__()
            self.noise = [torch.randn(8, generator=torch.Generator().manual_seed(drawn.pop()))]

        def forward(self, x):
            return super().forward(x) + self.noise[0]

    drawn = list(range(40))
    result = compressed(Net(Draws), x, tmp_path / "out")
    with pytest.raises(WeightsError, match="computes something else"):
        shoal.load(tmp_path / "out", model=lambda: Net(Draws))
    assert result.record.removed == ["blocks.1"]


def test_what_changes_from_run_to_run_is_no_state(x, tmp_path):
    class Counts(Residual):
        def __init__(self):
            super().__init__()
            self.calls, self.last, self.shape = 0, None, None

        def forward(self, x):
            self.calls += 1
            self.last = x
            self.shape = tuple(x.shape)
            return super().forward(x)

    result = compressed(Net(Counts), x, tmp_path / "out", factory=lambda: Net(Counts))
    with safe_open(tmp_path / "out" / EXTRAS, "pt") as file:
        kept = json.loads(file.metadata()["shoal-extras"])
    assert "blocks.0.alpha" in kept["numbers"]
    assert not any("calls" in name or "last" in name for name in [*kept["numbers"], *kept["tensors"]])
    assert same(shoal.load(tmp_path / "out", model=lambda: Net(Counts)), result.model, x)


def test_outputs_that_differ_from_run_to_run_are_not_compared(x, tmp_path):
    import random

    class Random(Net):
        def forward(self, x):
            return super().forward(x) + random.random()

    compressed(Random(), x, tmp_path / "out", factory=Random)
    shoal.load(tmp_path / "out", model=Random)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_buffers_come_back_in_their_precision(dtype, x, tmp_path):
    class Cast(Residual):
        def _apply(self, fn, recurse=True):
            self.table = fn(self.table)
            return super()._apply(fn, recurse)

    def factory(gain=None):
        model = Net(Cast).to(dtype)
        for block in model.blocks:
            block.gain = block.gain if gain is None else gain.to(block.gain.dtype)
        return model

    result = compressed(factory(torch.linspace(0, 1, 8)), x.to(dtype), tmp_path / "out", factory=factory)
    loaded = shoal.load(tmp_path / "out", model=factory)
    assert loaded.blocks[0].gain.dtype == loaded.blocks[0].table.dtype == dtype
    assert same(loaded, result.model, x.to(dtype))


State = namedtuple("State", "scale")


class Extra(nn.Linear):
    def __init__(self, note=None):
        super().__init__(8, 8)
        self.note = note

    def get_extra_state(self):
        return self.note

    def set_extra_state(self, state):
        self.note = state

    def forward(self, x):
        scale = self.note["scale"] if isinstance(self.note, dict) else 1.0
        return super().forward(x) * scale


def with_extra(note=None):
    model = Net()
    for block in model.blocks:
        block.a = Extra(note)
    return model


@pytest.mark.parametrize(
    "note", [{"scale": 5.0}, {"scale": torch.tensor(0.5)}, {"scale": 2, "history": (1, [torch.ones(3)])}, None]
)
def test_extra_states_come_back(note, x, tmp_path):
    result = compressed(with_extra(note), x, tmp_path / "out", factory=with_extra)
    loaded = shoal.load(tmp_path / "out", model=with_extra)
    assert same(loaded, result.model, x)
    assert type(loaded.blocks[0].a.note) is type(note)


@pytest.mark.parametrize("note", [State(2.0), {"scale": object()}, lambda: 0])
def test_extra_states_that_need_a_pickle_are_refused_before_anything_is_written(note, x, tmp_path):
    model = with_extra().eval()
    result = shoal.compress(model, [x], shoal.Blocks(["blocks.1"]), config=QUICK)
    for block in result.model.blocks:
        if isinstance(block, Residual):
            block.a.note = note
    with pytest.raises(WeightsError, match=r"(?s)'blocks.0.a._extra_state' of its state dict holds a .*never a pickle"):
        result.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore")
def test_quantised_layers_come_back(x, tmp_path):
    def quantised():
        return torch.ao.quantization.quantize_dynamic(Net().eval(), {nn.Linear}, dtype=torch.qint8)

    def other():
        torch.manual_seed(7)
        model = Net()
        for weight in model.parameters():
            nn.init.normal_(weight)
        return torch.ao.quantization.quantize_dynamic(model.eval(), {nn.Linear}, dtype=torch.qint8)

    result = compressed(quantised(), x, tmp_path / "out", factory=quantised)
    loaded = shoal.load(tmp_path / "out", model=other)
    assert same(loaded, result.model, x)
    assert torch.equal(loaded.head.weight().int_repr(), result.model.head.weight().int_repr())


def test_sparse_weights_are_refused():
    model = nn.Module()
    model.register_buffer("mask", torch.eye(3).to_sparse())
    with pytest.raises(WeightsError, match=r"'mask' of its state dict holds .*sparse_coo"):
        check_savable(model)


def test_tokens_are_drawn_as_large_as_the_example(tmp_path):
    class Tokens(nn.Module):
        def __init__(self, shift=0.0):
            super().__init__()
            torch.manual_seed(0)
            self.embed = nn.Embedding(11, 8)
            self.net = Net()
            self.net.stem = nn.Identity()
            self.rare = [shift]

        def forward(self, ids, attention_mask=None):
            x = self.net(self.embed(ids))
            return x + self.rare[0] * (ids == 3)[..., None]  # nothing a row of zeros would show

    ids = torch.arange(22).reshape(2, 11) % 11
    batch = {"ids": ids, "attention_mask": torch.ones_like(ids)}
    result = shoal.compress(Tokens(1.0).eval(), [batch], shoal.Blocks(["net.blocks.1"]), config=QUICK)
    result.save(tmp_path / "out")
    shoal.load(tmp_path / "out", model=lambda: Tokens(1.0))


def test_a_damaged_file_is_named(x, tmp_path):
    compressed(Net(), x, tmp_path / "out")
    path = tmp_path / "out" / EXTRAS
    whole = path.read_bytes()
    for broken in (b"", whole[:20], whole.replace(b"shoal-extras", b"shoal_extras")):
        path.write_bytes(broken)
        with pytest.raises(WeightsError, match="is damaged"):
            shoal.load(tmp_path / "out", model=Net)
    save_file({}, path, metadata={"shoal-extras": '{"states": {"head._extra_state": {"tensor": "none"}}}'})
    with pytest.raises(WeightsError, match="is damaged"):
        shoal.load(tmp_path / "out", model=Net)
    path.unlink()  # as folders of earlier versions are
    assert shoal.load(tmp_path / "out", model=Net)


def test_weights_of_another_network_of_the_same_shapes_are_noticed(x, tmp_path):
    compressed(Net(), x, tmp_path / "out")
    state = load_file(tmp_path / "out" / WEIGHTS)
    state["head.weight"] = state["head.weight"] * 1.5
    save_file(state, tmp_path / "out" / WEIGHTS)
    with pytest.raises(WeightsError, match="computes something else"):
        shoal.load(tmp_path / "out", model=Net)


def test_weights_laid_out_otherwise_are_the_same_network(tmp_path):
    class Conv(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.blocks = nn.ModuleList(Branch() for _ in range(3))

        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = block(x)
            return x.mean((2, 3))

    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            return x + self.conv(x).relu()

    x = torch.randn(4, 3, 9, 9)
    model = Conv().to(memory_format=torch.channels_last)
    compressed(model, x, tmp_path / "out", factory=Conv)
    shoal.load(tmp_path / "out", model=lambda: Conv().to(memory_format=torch.channels_last))


class Cancelling(nn.Module):
    """A difference of large numbers, in which rounding counts, and something small."""

    def __init__(self, large=0.0, small=0.0):
        super().__init__()
        self.large, self.small = large, small

    def forward(self, x):
        return (x * 1.1 + self.large) * 0.7 - self.large * 0.7 + self.small


@pytest.mark.parametrize(("large", "small", "known"), [(1000.0, 1e-4, True), (1000.0, 0.05, False), (0.0, 1e-4, False)])
def test_as_much_as_rounding_does_to_a_network_is_allowed_and_no_more(large, small, known, tmp_path):
    specs = [InputSpec(shape=[4], dtype="float32")]
    save_extras(Cancelling(large), specs, tmp_path / EXTRAS)
    extras, _ = read_extras(tmp_path / EXTRAS)
    if known:
        check_answers(Cancelling(large, small), specs, extras, by_rounding=True)
        return
    with pytest.raises(WeightsError, match="computes something else"):
        check_answers(Cancelling(large, small), specs, extras, by_rounding=True)
