"""Blocks that are given more than the stream: a mask, a tensor by keyword, constants."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.pipeline import Budget, CompressConfig, compress
from shoal.plan import Replace
from shoal.replace import ReplacementSpec, build_segments, find_spans, fit_all, refit_
from shoal.replace.refit import SequentialRefit, _side_inputs
from shoal.surgery.replace import replace_spans_


class MaskedBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: Tensor, mask: Tensor, cache: None = None, *, shift: Tensor, scale: float = 1.0) -> Tensor:
        branch = self.down(torch.relu(self.up(self.norm(x)))) * mask[..., None] + 0.01 * shift
        return x + scale * branch


class MaskedNet(nn.Module):
    def __init__(self, depth: int = 5, width: int = 8) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MaskedBlock(width) for _ in range(depth))
        self.shift, self.head = nn.Parameter(torch.randn(width)), nn.Linear(width, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, mask, None, shift=self.shift + 0.0, scale=0.5)
        return self.head(x.mean(dim=1))


@pytest.fixture
def network() -> MaskedNet:
    torch.manual_seed(0)
    return MaskedNet().eval()


def batches(count: int = 4, size: int = 16) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        Batch((torch.randn(size, 6, 8, generator=generator), (torch.rand(size, 6, generator=generator) > 0.2).float()))
        for _ in range(count)
    ]


def test_such_blocks_are_steps_that_follow_each_other(network: MaskedNet) -> None:
    anatomy = analyze(network, batches()[0].take(2))
    line = build_segments(anatomy)
    assert line.paths == tuple(f"blocks.{number}" for number in range(5))
    assert line.is_contiguous == (False, True, True, True, True)
    assert len(find_spans(anatomy, line, 5)) == 15


def test_a_stand_in_takes_what_it_does_not_need(network: MaskedNet) -> None:
    given = batches()
    anatomy = analyze(network, given[0].take(2))
    spans = {(one.start, one.stop): one for one in find_spans(anatomy, build_segments(anatomy), 2)}
    fitted = fit_all(anatomy, given, [ReplacementSpec(spans[0, 2], "scale"), ReplacementSpec(spans[2, 4], "linear")])
    student = analyze(copy.deepcopy(network), given[0].take(2))
    actions = [Replace(paths=list(one.span.paths), stand_in=one.stand_in) for one in fitted]
    cut = replace_spans_(student, actions, {one.span.paths[0]: copy.deepcopy(one.module) for one in fitted})
    whole, changed = network(*given[0].args), cut(*given[0].args)
    assert changed.shape == whole.shape
    assert 0 < float((whole - changed).detach().abs().max()) < float(whole.detach().abs().max())
    before = error_at_end(network, cut, given)
    refit_(anatomy, cut, fitted, given)
    assert error_at_end(network, cut, given) < before


def error_at_end(network: nn.Module, cut: nn.Module, given: list[Batch]) -> float:
    with torch.no_grad():
        return sum(float((network(*one.args) - cut(*one.args)).square().mean()) for one in given)


def test_compress_by_macs(network: MaskedNet) -> None:
    result = compress(network, batches(6), Budget(macs=0.6), config=CompressConfig(images=96, latency_seconds=0.01))
    assert result.record.reached
    assert result.plan.replaced or result.plan.removed
    assert result.record.compressed.cost.macs <= 0.6 * result.record.original.cost.macs


class Counting(nn.Module):
    """Writes into what it is given beside the stream: a dict, a list, an object, a tensor."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.norm, self.linear = way, nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor, side) -> Tensor:
        holder = side[0] if self.way == "list" else vars(side) if self.way == "object" else side
        factor = holder if self.way == "tensor" else holder["factor"]
        branch = self.linear(self.norm(x)) * factor
        if self.way in ("dict", "list", "object"):
            holder["factor"] = factor + 0.5
        else:
            factor += 0.5
        return x + branch


class CountingNet(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.blocks, self.head = nn.ModuleList(Counting(way) for _ in range(4)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        factor = torch.ones(1)
        sides = {"dict": {"factor": factor}, "list": [{"factor": factor}], "tensor": factor}
        for block in self.blocks:
            # Each block gets a state of its own: there is no way from one to the next but the stream.
            side = SimpleNamespace(factor=factor.clone()) if self.way == "object" else copy.deepcopy(sides[self.way])
            x = block(x, side)
        return self.head(x.mean(1))


@pytest.mark.parametrize("way", ["dict", "list", "object", "tensor"])
def test_what_blocks_write_into_is_a_copy_for_each_run(way: str) -> None:
    """Steps are run again and again beside the network; with what the last run left they would compute other things."""
    torch.manual_seed(0)
    network = CountingNet(way).eval()
    calibration = [Batch((torch.randn(16, 6, 8),)) for _ in range(3)]
    graph = analyze(network, calibration[0].take(2))
    line = build_segments(graph)
    assert len(line.paths) == 4
    walk = SequentialRefit(graph, copy.deepcopy(network), line, {}, frozenset(), False, 0)
    with torch.no_grad():
        formats = {segment.path: segment.output_format for segment in line.segments}
        walk.side_inputs = [_side_inputs(network, formats, batch) for batch in calibration]
        x = calibration[0].args[0]
        first = walk.forward_segments(network, line.segments, x, 0)
        again = walk.forward_segments(network, line.segments, x, 0)
        assert torch.equal(network.head(first.mean(1)), network(x))
        assert torch.equal(first, again)
