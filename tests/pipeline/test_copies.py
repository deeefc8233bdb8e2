"""How many copies of the weights lie in memory during a run, and to whom they belong when it is over."""

import gc

import pytest
import torch
from torch import nn

import language
import networks
import shoal
from shoal.batches import Batch
from shoal.pipeline import api, plan_builder, refinement
from shoal.pipeline.context import build_context
from shoal.preserve import copied, own_, shared_copy
from shoal.surgery import remove


def new_weights():
    """Bytes of all parameters that were made since `gc.freeze`, those that share memory once."""
    alive = [item for item in gc.get_objects() if type(item) is nn.Parameter and item.device.type == "cpu"]
    return sum({item.untyped_storage().data_ptr(): item.untyped_storage().nbytes() for item in alive}.values())


@pytest.fixture
def frozen():
    """What is there already is left out of what the collector lists."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def data(seed, count=8):
    rows = language.tokens(count, 8, seed=seed)
    return [Batch((), {"input_ids": part, "use_cache": False}, target=part) for part in rows.split(4)]


GOALS = {
    "removal": (shoal.RemoveBlocks(1), {}),
    "refitted": (shoal.RemoveBlocks(1), {"refit": True}),
    "plan": (shoal.Budget(depth=3), {"stand_ins": ("folded",)}),
}
# Maps set anew have memory of their own: of those two or three that are compared, in a plan with those of its table.
ALLOWED = {"removal": 1.0, "refitted": 1.7, "plan": 2.4}


@pytest.fixture
def model():
    return language.llama(4)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("refitted", "plan")]


@pytest.mark.parametrize("name", ["removal", *SLOW])
def test_a_run_holds_a_single_copy_of_what_it_does_not_set(model, frozen, name, monkeypatch):
    before = [(parameter.detach().clone(), parameter._version) for parameter in model.parameters()]
    size = sum(parameter.nbytes for parameter in model.parameters())
    peak, seen, forward = 0, set(), type(model).forward

    def watched(self, *args, **kwargs):
        nonlocal peak
        if id(self) not in seen:  # every network once, when it first runs
            seen.add(id(self))
            peak = max(peak, new_weights())
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", watched)
    contexts = []
    monkeypatch.setattr(api, "build_context", lambda *args: contexts.append(build_context(*args)) or contexts[0])
    goal, options = GOALS[name]
    config = shoal.CompressConfig(latency_seconds=0.01, **options)
    result = shoal.compress(model, data(0), goal, validation=data(1), config=config)
    assert len(seen) > 2
    # What is written to a parameter of any copy raises the version of the one that it lies with.
    assert not any(parameter._version for parameter in contexts[0].graph.model.parameters())
    assert peak / size < ALLOWED[name] + 0.02
    for parameter, (values, version) in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, values)
        assert parameter._version == version
    places = {parameter.data_ptr() for parameter in model.parameters()}
    assert not places & {parameter.data_ptr() for parameter in result.model.parameters()}
    optimizer = torch.optim.SGD(result.model.parameters(), lr=0.1)  # what comes out may well learn
    result.model(**data(2)[0].kwargs).logits.square().mean().backward()
    optimizer.step()
    assert all(
        torch.equal(parameter, values) for parameter, (values, _) in zip(model.parameters(), before, strict=True)
    )


UNITS = (shoal.Budget(depth=6, grain="unit"), {"stand_ins": ("folded",)})
CASES = [
    ("convolutions", GOALS["refitted"]),
    pytest.param("convolutions", (shoal.Budget(depth=3), {}), marks=pytest.mark.slow),
    *(pytest.param("llama", goal, marks=pytest.mark.slow) for goal in (*GOALS.values(), UNITS)),
]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_what_comes_out_is_that_of_a_run_on_whole_copies(name, case, monkeypatch):
    if name == "llama":
        network, first, second = language.llama(4), data(0), data(1)
    else:
        torch.manual_seed(0)
        network = networks.randomised(networks.PreactNet(4, 4))
        first, second = ([torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(n))] for n in (0, 1))
    goal, options = case
    config = shoal.CompressConfig(latency_seconds=0.01, **options)
    result = shoal.compress(network, first, goal, validation=second, config=config)
    for module in (api, plan_builder, refinement, remove):
        monkeypatch.setattr(module, "shared_copy", lambda part, holder=None: copied(part))
    whole = shoal.compress(network, first, goal, validation=second, config=config)
    assert result.plan == whole.plan
    assert result.record.comparison == whole.record.comparison
    assert result.record.original.quality == whole.record.original.quality
    torch.testing.assert_close(result.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


class Renewing(nn.Module):
    """Scales its weights anew in every run."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            with torch.no_grad():
                block.weight.mul_(0.999)
            x = x + block(x)
        return x


def test_what_a_run_writes_to_is_not_shared():
    network = copied(Renewing())
    assert shared_copy(network).blocks[0].weight.data_ptr() == network.blocks[0].weight.data_ptr()
    network(torch.ones(1, 4))
    twin = shared_copy(network)
    assert twin.blocks[0].weight.data_ptr() != network.blocks[0].weight.data_ptr()
    assert twin.blocks[0].bias.data_ptr() == network.blocks[0].bias.data_ptr()
    assert own_(twin).blocks[0].bias.data_ptr() != network.blocks[0].bias.data_ptr()


@pytest.mark.parametrize("raised", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_leaves_the_original_as_it_was(raised, monkeypatch):
    model = networks.randomised(networks.PreactNet(4, 3))
    before = [(parameter.detach().clone(), parameter._version) for parameter in model.parameters()]

    def interrupted(*args, **kwargs):
        raise raised

    monkeypatch.setattr(api, "measure_outcome", interrupted)
    with pytest.raises(raised):
        shoal.compress(model, [torch.ones(4, 1, 8, 8)], shoal.RemoveBlocks(1))
    for parameter, (values, version) in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, values)
        assert parameter._version == version
