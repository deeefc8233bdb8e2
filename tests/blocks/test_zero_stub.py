import copy

import pytest
import torch
from torch import nn

from shoal.batches import Batch
from shoal.blocks.module_replacements import ZeroStub
from shoal.blocks.trace import trace_run
from shoal.errors import SurgeryError


class Parts(nn.Module):
    """Returns its result in a dict, a second one that nobody reads, and something that is no tensor."""

    width = 6

    def __init__(self):
        super().__init__()
        self.up, self.heads = nn.Linear(4, 6), 2

    def forward(self, mask, *, x):
        return {"out": self.up(x), "weights": x @ x.mT, "cache": object()}


class Net(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(x > 0, x=x)["out"].sum(1) if isinstance(self.part, Parts) else self.part(x) + 1


def stub_of(part, x, **more):
    model = Net(part).eval()
    run = trace_run(model, Batch((x,)))
    return ZeroStub(run, run.calls_of(part)[0], writable=more.get("writable", False))


def test_zeros_of_the_shape_that_the_module_would_return():
    module = stub_of(Parts(), torch.randn(2, 3, 4))
    for shape in ((2, 3, 4), (5, 7, 4)):
        found = module(torch.ones(shape) > 0, x=torch.randn(shape))
        assert found["out"].shape == (*shape[:2], 6)
        assert not found["out"].any()
        assert found["weights"] is None
        assert found["cache"] is None
    assert module(None, x=torch.randn(1, 1, 4).double())["out"].dtype == torch.float64


def test_it_holds_nothing_and_may_be_copied():
    module = stub_of(Parts(), torch.randn(2, 3, 4))
    assert module.heads == 2
    assert not module.state_dict()
    assert list(module.parameters()) == []
    assert copy.deepcopy(module)(None, x=torch.ones(1, 2, 4))["out"].shape == (1, 2, 6)
    linear = stub_of(nn.Linear(4, 4), torch.randn(2, 4))
    assert linear.weight is None
    assert linear.bias is None


def test_zeros_take_no_memory_unless_they_are_written_to():
    part, x = nn.Conv2d(3, 8, 3, padding=1), torch.randn(2, 3, 5, 5)
    assert set(stub_of(part, x)(x).stride()) == {0}
    written = stub_of(part, x, writable=True)(x)
    assert written.shape == (2, 8, 5, 5)
    written += 1
    assert written.sum() == written.numel()


@pytest.mark.parametrize("part", [nn.Flatten(), nn.AvgPool2d(2), nn.Conv2d(3, 8, 3)])
def test_a_shape_that_does_not_follow_is_refused(part):
    with pytest.raises(SurgeryError, match="the shape of what 'part' returns does not follow"):
        stub_of(part, torch.randn(2, 3, 6, 6))
