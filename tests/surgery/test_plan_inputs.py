"""What a plan remembers of the inputs of a network."""

import pytest
import torch
from torch import nn

import shoal
from shoal.batches import Batch
from shoal.errors import PlanError
from shoal.plan import Plan
from shoal.surgery import example_of, input_specs


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        return x + torch.tanh(self.inner(x))


class Switched(nn.Module):
    """Takes a flag, as `use_cache` of a language model."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(*[Block() for _ in range(3)])
        self.head, self.calls = nn.Linear(6, 3), 0

    def forward(self, x, *, plain=False, scale=None, options=None):
        self.calls += 1
        x = self.head(self.blocks(x))
        return x if plain else x.exp()


def data(**more):
    torch.manual_seed(1)
    return [Batch((torch.randn(8, 6),), more) for _ in range(2)]


def test_constants_among_the_inputs_are_part_of_the_plan(tmp_path):
    result = shoal.compress(Switched(), data(plain=True, scale=0.5), shoal.RemoveBlocks(1))
    again = example_of(Plan.model_validate_json(result.plan.model_dump_json()).inputs)
    assert again.kwargs == {"plain": True, "scale": 0.5}
    result.save(tmp_path / "out")
    loaded = shoal.load(tmp_path / "out", model=Switched())
    x = data()[0].args[0]
    assert torch.equal(loaded(x, plain=True), result.model(x, plain=True))


@pytest.mark.parametrize("value", [True, 3, -1.5, "left", None])
def test_a_constant_comes_back_as_it_was(value):
    [_, spec] = input_specs(Batch((torch.zeros(2, 3),), {"option": value}))
    kept = example_of([type(spec).model_validate_json(spec.model_dump_json())]).kwargs["option"]
    assert kept == value
    assert type(kept) is type(value)


@pytest.mark.parametrize("value", [{"a": 1}, [1, 2], float("nan"), object()])
def test_other_inputs_are_refused_before_anything_is_measured(value):
    model = Switched()
    traced = Switched()
    shoal.trace(traced, data(options=value)[0])
    with pytest.raises(PlanError, match=f"an input of the network is a {type(value).__name__}: a plan remembers"):
        shoal.compress(model, data(options=value), shoal.RemoveBlocks(1))
    assert model.calls <= traced.calls + 1
