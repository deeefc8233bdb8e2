import re
from pathlib import Path

import pytest
import torch
from torch import nn

import shoal
from shoal.batches import Batch
from shoal.blocks import Shortcut, adapter, analyze, trace
from shoal.blocks.adapters import adapter_of, declared_shortcut, restoring_adapters
from shoal.errors import SurgeryError, UsageError
from shoal.surgery import apply, input_specs, remove_blocks, signature_of

DOCS = Path(__file__).parents[2] / "docs" / "adapters.md"


class Highway(nn.Module):
    """Srivastava et al. 2015: the gate decides what of the input goes on; no addition joins a shortcut."""

    def __init__(self, width=4):
        super().__init__()
        self.work, self.gate = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x, scale=1.0):
        return torch.lerp(x, torch.relu(self.work(x)), torch.sigmoid(self.gate(x)) * scale)


class Net(nn.Module):
    def __init__(self, depth=3, kind=Highway):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(kind() for _ in range(depth))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x, scale=0.5)
        return self.head(x)


@pytest.fixture(autouse=True)
def restored():
    with restoring_adapters():
        yield


@pytest.fixture
def adapted():
    adapter(Highway)(lambda block: Shortcut())


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def test_without_an_adapter_there_is_no_block_and_with_it_there_are_three():
    assert len(trace(Net(), X)) == 0
    adapter(Highway)(lambda block: Shortcut())
    chain = trace(Net(), X)
    assert chain.paths == ["layers.0", "layers.1", "layers.2"]
    assert all(block.removable and block.shortcut == "declared" and not block.units for block in chain)
    assert chain.note is None


@pytest.mark.usefixtures("adapted")
def test_a_declared_block_is_removed_and_its_plan_replayed():
    model = Net().eval()
    expected = Net(2).eval()
    expected.layers[0], expected.layers[1], expected.head = model.layers[0], model.layers[2], model.head
    batch = Batch((X,))
    cut = remove_blocks(model, batch, ["layers.1"]).eval()
    assert torch.equal(cut(X), expected(X))
    assert not any(name.startswith("layers.1.") for name in cut.state_dict())
    chain = analyze(model, batch).chain
    plan = shoal.Plan(
        inputs=input_specs(batch),
        network=signature_of(model, chain),
        actions=[{"kind": "remove", "path": "layers.1"}],
    )
    assert torch.equal(apply(model, plan).eval()(X), expected(X))


@pytest.mark.usefixtures("adapted")
def test_scan_and_compress_know_declared_blocks():
    data = [(X, torch.arange(5) % 3)] * 2
    record = shoal.scan(Net().eval(), data)
    assert {block.path: sorted(block.ablations) for block in record.blocks} == {
        f"layers.{number}": ["block"] for number in range(3)
    }
    result = shoal.compress(
        Net().eval(), data, shoal.RemoveBlocks(2), config=shoal.CompressConfig(latency_seconds=0.01)
    )
    assert len(result.record.removed) == 2
    assert (result.record.original.blocks, result.record.compressed.blocks) == (3, 1)


def test_the_nearest_class_counts_and_the_last_adapter():
    class Special(Highway):
        pass

    first, second = Shortcut(), nn.Identity()
    adapter(Highway)(lambda block: first)
    assert declared_shortcut(Special(), "a") is first
    adapter(Special)(lambda block: second)
    assert declared_shortcut(Special(), "a") is second
    assert declared_shortcut(Highway(), "a") is first
    assert adapter_of(nn.Linear(2, 2)) is None


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (lambda block: None, "its adapter keeps it"),
        (lambda block: 3, "its adapter returned int for "),
        (lambda block: block.missing, "its adapter raised AttributeError"),
        (lambda block: nn.Linear(4, 7), "the network does not run without it"),
    ],
)
def test_what_an_adapter_does_wrong_is_the_reason(left, said):
    adapter(Highway)(left)
    chain = trace(Net(), X)
    assert not chain.removable
    assert all(said in block.reason for block in chain)
    with pytest.raises(SurgeryError, match=re.escape(said)):
        remove_blocks(Net(), Batch((X,)), ["layers.0"])


def test_only_classes_of_modules_have_adapters():
    with pytest.raises(UsageError, match=r"expected a class of torch\.nn\.Module"):
        adapter(Highway())
    with pytest.raises(UsageError):
        adapter(int)


def test_the_adapter_is_asked_before_discovery():
    class Residual(Highway):
        def forward(self, x, scale=1.0):
            return x + self.work(x) * scale

    class Doubled(nn.Module):
        def forward(self, x, **named):
            return 2 * x

    adapter(Residual)(lambda block: Doubled())
    model = Net(kind=Residual).eval()
    assert [block.shortcut for block in trace(model, X)] == ["declared"] * 3
    cut = remove_blocks(model, Batch((X,)), ["layers.0", "layers.1", "layers.2"])
    assert torch.equal(cut(X), model.head(8 * X))


def test_the_example_of_the_page_runs():
    page = DOCS.read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(code) == 1
    known = {}
    exec(compile(code[0], str(DOCS), "exec"), known)
    assert known["result"].record.removed
    told = re.search(r"@shoal\.adapter.*?(?=\n\n)", code[0], flags=re.DOTALL)
    assert len(told.group().splitlines()) <= 10
