"""The work of a trace grows with the number of blocks, not with its square: function calls are counted, never time."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import shoal


class PreNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.outer(torch.relu(self.inner(self.norm(x))))


class InPlace(nn.Module):
    """What it writes into is looked for among all tensors that share the memory."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.outer(self.act(self.inner(x)))
        out += x
        return self.act(out)


class TwoUnits(nn.Module):
    """One addition stands in a module of its own inside the block, which adds as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = PreNorm(), nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return x + self.second(self.norm(x))


def calls_of(action: Callable[[], Any]) -> int:
    """How many functions an action calls, those of C included."""
    count = 0

    def watch(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(watch)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("block", [PreNorm, InPlace, TwoUnits])
def test_a_trace_takes_as_long_for_a_block_of_a_deep_network_as_of_a_shallow_one(block: type[nn.Module]) -> None:
    def calls(depth: int) -> int:
        torch.manual_seed(0)
        model = nn.Sequential(*[block() for _ in range(depth)], nn.Linear(4, 2)).eval()
        return calls_of(lambda: shoal.trace(model, torch.rand(2, 4)))

    calls(2)  # what torch looks up once
    few, more, many = calls(8), calls(24), calls(56)
    assert (many - more) / 32 == pytest.approx((more - few) / 16, rel=0.02)
