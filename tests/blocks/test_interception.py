import pytest
import torch
import torch.nn.functional as F
from torch import nn

import networks
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.blocks.interception import intercept_additions
from shoal.preserve import evaluating


class Block(nn.Module):
    def __init__(self, join):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.join = join

    def forward(self, x):
        return self.join(x, self.fc(x))


def chain_of(join):
    return nn.Sequential(nn.Linear(4, 4), Block(join), Block(join), nn.Linear(4, 3))


JOINS = {
    "stream first": lambda x, f: x + f,
    "branch first": lambda x, f: f + x,
    "torch.add": lambda x, f: torch.add(x, other=f),
    "keywords": lambda x, f: torch.add(other=x, input=f),
    "keywords in order": lambda x, f: torch.add(input=x, other=f),
    "into the branch": lambda x, f: f.add_(x),
    "into the branch by operator": lambda x, f: f.__iadd__(x),
    "into the stream": lambda x, f: x.clone().add_(f),
    "expanded branch": lambda x, f: f[:, :1].expand(-1, 4) + x,
}
NETWORKS = {name: (lambda join=join: chain_of(join), lambda: torch.randn(3, 4)) for name, join in JOINS.items()}
NETWORKS |= {
    "cifar": (lambda: networks.CifarResNet(2), lambda: torch.randn(2, 3, 8, 8)),
    "preact": (networks.PreactNet, lambda: torch.randn(2, 1, 6, 6)),
    "gelu": (networks.NumberedNet, lambda: torch.randn(2, 4)),
    "post-norm": (networks.PostNormNet, lambda: torch.randn(2, 5, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_tap_sees_stream_and_branch_of_every_unit(name):
    make, example = NETWORKS[name]
    net, x = networks.randomised(make()), example()
    graph = analyze(net, Batch((x,)))
    blocks = [block for block in graph.chain if block.units]
    seen, results = [], []

    def look(path, unit, stream, branch):
        seen.append((path, unit))
        results.append(stream + branch)

    expected = net(x)
    with torch.no_grad(), intercept_additions(net, blocks, look):
        assert torch.equal(net(x), expected)
    assert seen == [(block.path, unit) for block in blocks for unit in range(len(block.units))]
    if name == "cifar":
        outputs = []
        handles = [net.get_submodule(b.path).register_forward_hook(lambda m, a, o: outputs.append(o)) for b in blocks]
        net(x)
        assert all(torch.equal(F.relu(one), other) for one, other in zip(results, outputs, strict=True))
        assert len(handles) == len(results)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_branch_replaced_by_zeros_equals_the_remainder(name):
    make, example = NETWORKS[name]
    net, x = networks.randomised(make()), example()
    graph = analyze(net, Batch((x,)))
    block = graph.chain.removable[-1]
    with (
        evaluating(net),
        intercept_additions(net, [block], lambda path, unit, stream, branch: torch.zeros_like(branch)),
    ):
        zeroed = net(x)
    net.set_submodule(block.path, graph.shortcut_modules[block.path])
    with evaluating(net):
        if name == "post-norm":  # without hooks torch takes its fast path, which rounds differently
            torch.testing.assert_close(zeroed, net(x))
        else:
            assert torch.equal(zeroed, net(x))


@pytest.mark.parametrize("join", [JOINS["branch first"], JOINS["stream first"], JOINS["keywords"]])
def test_replacing_a_branch_leaves_the_branch_itself_alone(join):
    kept = []

    def keeping(x, f):
        kept.append((f, f.clone()))
        return join(x, f)

    net = chain_of(keeping)
    graph = analyze(net, Batch((torch.randn(3, 4),)))
    kept.clear()
    with intercept_additions(net, list(graph.chain), lambda path, unit, stream, branch: 2 * branch):
        loss = net(torch.randn(3, 4)).square().sum()
    loss.backward()
    assert all(torch.equal(one, before) for one, before in kept)


def test_hooks_go_when_the_model_raises():
    net = chain_of(JOINS["stream first"])
    graph = analyze(net, Batch((torch.randn(3, 4),)))

    def fails(path, unit, stream, branch):
        raise RuntimeError("from the tap")

    with pytest.raises(RuntimeError, match="from the tap"), intercept_additions(net, list(graph.chain), fails):
        net(torch.randn(3, 4))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    net(torch.randn(3, 4))
