import pytest
import torch
from torch import nn

from networks import CifarResNet, PreactNet, randomised
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.blocks.prefix_cache import PrefixCache
from shoal.preserve import evaluating
from shoal.scanning.batched_candidates import run_batched, stackable


@pytest.mark.parametrize("most", [1, 2, 100])
@pytest.mark.parametrize(
    ("model", "x"),
    [
        (CifarResNet(2, widths=(4, 8, 16)), torch.randn(3, 3, 32, 32)),
        (PreactNet(width=4, depth=5), torch.randn(3, 1, 8, 8)),
    ],
)
def test_stacked_outputs_are_those_of_single_runs(model, x, most):
    randomised(model)
    anatomy = analyze(model, Batch((x[:2],)))
    with evaluating(model):
        prefix = PrefixCache(anatomy)
        prefix.record(Batch((x,)))
        found = dict(run_batched(anatomy, prefix, anatomy.chain.paths, most))
        assert list(found) == anatomy.chain.paths
        for path, output in found.items():
            expected = prefix.run_without(path, anatomy.shortcut_modules[path])
            torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("limit", "shared"), [(30, 5), (9, 5), (6, 5), (3, 0)])
def test_fewer_share_a_forward_where_memory_does_not_suffice(limit, shared):
    torch.manual_seed(0)
    model, x = randomised(PreactNet(width=4, depth=5)), torch.randn(3, 1, 8, 8)
    graph = analyze(model, Batch((x[:2],)))
    largest = []

    def check(module, args):
        largest.append(len(args[0]))
        if len(args[0]) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with evaluating(model):
        prefix = PrefixCache(graph)
        prefix.record(Batch((x,)))
        model.blocks[-1].register_forward_pre_hook(check)
        outputs = dict(run_batched(graph, prefix, graph.chain.paths, 100))
        assert len(outputs) == shared
        for path, output in outputs.items():
            expected = prefix.run_without(path, graph.shortcut_modules[path])
            torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


def test_a_block_that_takes_two_tensors_cannot_share_a_forward():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x, mask):
            return x + self.fc(x) * mask

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Masked(), Masked()])

        def forward(self, x):
            for block in self.blocks:
                x = block(x, torch.ones(x.shape[0], 1))
            return x

    model = Net().eval()
    anatomy = analyze(model, Batch((torch.randn(2, 4),)))
    assert not stackable(anatomy, "blocks.0")
    with evaluating(model):
        prefix = PrefixCache(anatomy)
        prefix.record(Batch((torch.randn(3, 4),)))
        assert list(run_batched(anatomy, prefix, anatomy.chain.paths, 4)) == []
