"""What Shoal is handed: compiled networks, copies, and networks that cannot be worked on."""

import functools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import shoal
from shoal.errors import NotReachedError, ShoalError, SurgeryError, UsageError, WeightsError
from shoal.intake import is_compiled, packed, plain
from shoal.preserve import copied, evaluating

QUICK = shoal.CompressConfig(latency_seconds=0.001)


class Residual(nn.Module):
    def __init__(self, norm=nn.LayerNorm):
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.norm = norm(8)
        self.b = nn.Linear(8, 8)

    def forward(self, x):
        return x + self.b(torch.relu(self.norm(self.a(x))))


class Net(nn.Module):
    def __init__(self, norm=nn.LayerNorm):
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.blocks = nn.ModuleList(Residual(norm) for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture
def x():
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def skipped(model, x, path):
    """What the network returns without a block."""
    model.set_submodule(path, nn.Identity())
    with torch.no_grad():
        return model(x)


def compiled_whole(model):
    return torch.compile(model, backend="eager")


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def compiled_blocks(model):
    for number, block in enumerate(model.blocks):
        model.blocks[number] = torch.compile(block, backend="eager")
    return model


def compiled_twice(model):
    return torch.compile(compiled_blocks(model), backend="eager")


def compiled_function(model):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        @torch.compile(backend="eager")
        def middle(self, x):
            for block in self.net.blocks:
                x = block(x)
            return x

        def forward(self, x):
            return self.net.head(self.middle(self.net.stem(x)))

    return Outer()


COMPILED = [compiled_whole, compiled_in_place, compiled_blocks, compiled_twice]


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.BatchNorm1d])
@pytest.mark.parametrize("compiled", COMPILED)
def test_compiled_networks_are_seen_through(compiled, norm, x, tmp_path):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Net(norm).eval()
    expected = skipped(copied(model), x, "blocks.1")
    network = compiled(model)
    with torch.no_grad():
        network(x)  # compiled before Shoal sees it
    assert is_compiled(network)
    assert shoal.trace(network, x).paths == [f"blocks.{number}" for number in range(4)]
    assert [block.path for block in shoal.scan(network, [x]).blocks] == [f"blocks.{number}" for number in range(4)]
    result = shoal.compress(network, [x], shoal.Blocks(["blocks.1"]), config=QUICK)
    assert not is_compiled(result.model)
    assert any("was compiled" in warning for warning in result.record.warnings)
    assert not any("_orig_mod" in name for name in result.model.state_dict())
    with torch.no_grad():
        assert torch.equal(result.model(x), expected)
    result.save(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(shoal.load(tmp_path / "out", model=lambda: Net(norm))(x), expected)
        assert torch.equal(shoal.load(tmp_path / "out", model=lambda: compiled(Net(norm)))(x), expected)
    assert shoal.certify(network, plain(network), [x]).verdict == "identical"


def test_a_compiled_function_runs_as_it_was_written(x):
    torch._dynamo.reset()
    torch.manual_seed(0)
    network = compiled_function(Net(nn.BatchNorm1d)).eval()
    with torch.no_grad():
        network(x)
    assert shoal.trace(network, x).paths == [f"net.blocks.{number}" for number in range(4)]
    result = shoal.compress(network, [x], shoal.RemoveBlocks(1), config=QUICK)
    assert len(result.record.removed) == 1


def test_compiled_parts_share_their_tensors_and_stay_as_they_were(x):
    torch._dynamo.reset()
    network = compiled_blocks(Net().eval())
    inside = plain(network)
    assert inside is not network
    assert is_compiled(network)
    assert not is_compiled(inside)
    assert all(a is b for a, b in zip(network.parameters(), inside.parameters(), strict=True))
    assert plain(inside) is inside


def test_gates_do_not_go_into_compiled_parts(x):
    torch._dynamo.reset()
    with pytest.raises(UsageError, match="compiled"):
        shoal.epsilonize_(compiled_blocks(Net().eval()), x, 1.0)


def test_the_stance_of_the_compiler_comes_back(x):
    torch._dynamo.reset()
    runs = []

    def backend(graph, inputs):
        runs.append(graph)
        return graph.forward

    network = torch.compile(Net().eval(), backend=backend)
    with pytest.raises(ShoalError):
        shoal.trace(network, torch.randn(2, 5))
    with evaluating(network):
        network(x)
    assert not runs
    network(x)
    assert runs


def pruned(layer):
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


WRAPS = {
    "weight_norm": weight_norm,
    "spectral_norm": spectral_norm,
    "prune": pruned,
    "parametrizations.weight_norm": parametrizations.weight_norm,
    "parametrizations.spectral_norm": parametrizations.spectral_norm,
    "parametrizations.orthogonal": parametrizations.orthogonal,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", WRAPS)
def test_weights_computed_from_others_after_training(name, x):
    torch.manual_seed(0)
    model = Net()
    for block in model.blocks:
        block.a = WRAPS[name](block.a)
    model.train()
    model(x).sum().backward()
    model.eval()
    result = shoal.compress(model, [x], shoal.Blocks(["blocks.1"]), config=QUICK)
    with torch.no_grad():
        model(x)
        expected = skipped(model, x, "blocks.1")
        assert torch.equal(result.model(x), expected)
        result.model.blocks[0].a.bias.add_(1)
        assert not torch.equal(result.model(x), expected), "the copy shares its bias"
        assert torch.equal(model(x), expected)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["weight_norm", "prune"])
def test_what_weights_are_computed_from_goes_on_learning(name, x):
    torch.manual_seed(0)
    model = Net()
    for block in model.blocks:
        block.a = WRAPS[name](block.a)
    model(x).sum().backward()
    settings = shoal.CompressConfig(latency_seconds=0.001)
    result = shoal.compress(
        model.eval(), [x], shoal.Blocks(["blocks.1"]), validation=[x + 0.1], recovery=4, config=settings
    )
    assert result.record.recovery is not None


def test_a_feature_that_a_module_keeps_is_copied(x):
    class Keeps(Residual):
        def forward(self, x):
            self.last = {"features": [super().forward(x)]}
            return self.last["features"][0]

    model = Net()
    model.blocks[2] = Keeps()
    model(x).sum().backward()
    twin = copied(model)
    assert torch.equal(twin.blocks[2].last["features"][0], model.blocks[2].last["features"][0])
    assert not twin.blocks[2].last["features"][0].requires_grad


def lazy_stem():
    model = Net()
    model.stem = nn.LazyLinear(8)
    return model


def lazy_norm():
    model = Net()
    model.blocks[1].norm = nn.LazyBatchNorm1d()
    return model


@pytest.mark.parametrize("factory", [lazy_stem, lazy_norm])
@pytest.mark.parametrize("verb", ["trace", "scan", "compress", "certify"])
def test_lazy_modules_are_named_before_their_first_run(factory, verb, x):
    calls = {
        "trace": lambda model: shoal.trace(model, x),
        "scan": lambda model: shoal.scan(model, [x]),
        "compress": lambda model: shoal.compress(model, [x], shoal.RemoveBlocks(1), config=QUICK),
        "certify": lambda model: shoal.certify(model, model, [x]),
    }
    model = factory().eval()
    with pytest.raises(WeightsError, match=r"(?s)is a Lazy.*without weights.*Run the network once"):
        calls[verb](model)
    model(x)
    calls[verb](model)


def test_torchscript_is_refused(x):
    for script in (torch.jit.script(Net().eval()), torch.jit.trace(Net().eval(), x)):
        with pytest.raises(SurgeryError, match=r"(?s)TorchScript.*as it was before"):
            shoal.compress(script, [x], shoal.RemoveBlocks(1), config=QUICK)


@pytest.mark.parametrize("sparse", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr])
def test_sparse_weights_are_refused(sparse, x):
    model = Net().eval()
    model.blocks[1].register_buffer("adjacency", sparse(torch.eye(8)))
    with pytest.raises(WeightsError, match=r"(?s)'blocks.1' holds 'adjacency' as a sparse tensor.*Keep it dense"):
        shoal.trace(model, x)


def test_weights_that_are_no_plain_tensors_are_refused(x):
    class Wrapped(torch.Tensor):
        @staticmethod
        def __new__(cls, inner):
            return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

        def __init__(self, inner):
            self.inner = inner

        def __tensor_flatten__(self):
            return ["inner"], None

        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.detach.default:
                return Wrapped(args[0].inner)
            raise NotImplementedError(str(func))

    model = Net().eval()
    model.blocks[1].a.weight = nn.Parameter(Wrapped(torch.randn(8, 8)), requires_grad=False)
    with pytest.raises(WeightsError, match=r"(?s)'weight' of 'blocks.1.a' is a Wrapped.*before it is quantised"):
        shoal.compress(model, [x], shoal.RemoveBlocks(1), config=QUICK)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_packed_weights_can_be_removed_and_scanned_but_not_trained(x):
    model = torch.ao.quantization.quantize_dynamic(Net().eval(), {nn.Linear}, dtype=torch.qint8)
    assert packed(model)[0] == "stem._packed_params._packed_params"
    assert not packed(Net())
    assert any("no Taylor scores" in note for note in shoal.scan(model, [x]).notes)
    result = shoal.compress(model, [x], shoal.Blocks(["blocks.1"]), config=QUICK)
    assert torch.equal(result.model(x), skipped(copied(model), x, "blocks.1"))
    with pytest.raises(UsageError, match="packed"):
        shoal.compress(model, [x], shoal.RemoveBlocks(1), validation=[x + 1], recovery=2, config=QUICK)


def test_complex_weights_that_are_no_numbers_are_found(x):
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()
            self.turn = nn.Parameter(torch.full((4,), complex("nan")))

        def forward(self, x):
            return self.net((x * self.turn).real)

    with pytest.raises(ShoalError, match="NaN or Inf"):
        shoal.trace(Complex().eval(), x)


def test_graphs_hold_no_blocks_and_say_so(x):
    model = Net().eval()
    x = x[:2]  # an exported program takes batches of the size it was exported with
    for graph in (torch.fx.symbolic_trace(model), torch.export.export(model, (x,)).module()):
        chain = shoal.trace(graph, x)
        assert not chain.removable
        assert chain.note or "addition" in (chain.blocks[0].reason or "")
        with pytest.raises(NotReachedError):
            shoal.compress(graph, [x], shoal.RemoveBlocks(1), config=QUICK)


def patch_forward(net):
    block = net.blocks[0]
    block.forward = lambda x: x + block.b(block.a(x))


def patch_whole(net):
    before = net.forward
    net.forward = lambda x: before(x) * 2


def patch_partial(net):
    block = net.blocks[0]
    net.blocks[0].forward = functools.partial(lambda around, x: block.b(x) + around.stem.bias, net)


def keep_function(net):
    scale = net.blocks[0].a.bias
    net.stem.forward = functools.wraps(net.stem.forward)(lambda x, *, by=2: nn.Linear.forward(net.stem, x) * by + scale)


def hook_feature(net):
    net.feature = None

    def keep(module, args, output):
        net.feature = output

    net.blocks[1].register_forward_hook(keep)
    net.blocks[3].register_forward_hook(lambda module, args, output: output + net.feature)


@pytest.mark.parametrize("change", [patch_forward, patch_whole, patch_partial, keep_function, hook_feature])
def test_functions_that_hold_the_network_hold_the_copy_in_it(change, x):
    net = Net().eval()
    change(net)
    expected = net(x)
    twin = copied(net)
    with torch.no_grad():
        assert torch.equal(twin(x), expected)
        for parameter in twin.parameters():
            parameter.mul_(2)
        assert not torch.allclose(twin(x), expected)
    assert torch.equal(net(x), expected)
    twin(x).sum().backward()
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_network_with_a_forward_of_its_own_loses_a_block(x):
    net = Net().eval()
    patch_whole(net)
    assert shoal.trace(copied(net), x).paths == [f"blocks.{number}" for number in range(4)]


def test_counters_around_a_function_stay_shared(x):
    calls = 0

    def count(module, args, output):
        nonlocal calls
        calls += 1

    net = Net().eval()
    net.stem.register_forward_hook(count)
    copied(net)(x)
    assert calls == 1
