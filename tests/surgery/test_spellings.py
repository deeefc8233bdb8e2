"""One table of spellings against every proof: zero, sign, the same computation, a residual addition, `exact`."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import shoal
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.blocks.additions import residual_additions
from shoal.blocks.sign_analysis import non_negative_values
from shoal.blocks.trace import trace_run
from shoal.blocks.zero_analysis import zero_values
from shoal.errors import NonFiniteError, NotReachedError, TraceError
from shoal.surgery import remove_blocks
from shoal.surgery.canonical_form import CanonicalForm
from spellings import ELEMENTS, EXPRESSIONS, LAYERS, PRODUCTS, SUMS, WIDTH, Spelled, fresh

FAST = shoal.CompressConfig(latency_seconds=0.002, images=16)


def example(samples=2):
    return Batch((torch.randn(samples, WIDTH, generator=torch.Generator().manual_seed(1)),))


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_no_proof_about_a_spelling_is_contradicted(name):
    net = Spelled(EXPRESSIONS[name]).eval()
    try:
        run = trace_run(net, example())
    except TraceError:  # what torch does not announce (set_) is refused
        return
    zeros = zero_values(run, net)
    result = run.output.value
    for x, y in fresh(net):
        if result in zeros:
            assert not bool(torch.count_nonzero(y)), zeros[result]
        if result in non_negative_values(run, zeros):
            assert not bool((y < 0).any())
        for addition in residual_additions(run):
            if addition.shortcut == "identity":
                with torch.no_grad():
                    assert torch.equal(y, x + net.live(x)) or torch.equal(y, x)


def digests():
    found = {}
    for name, expression in EXPRESSIONS.items():
        try:
            canonical = CanonicalForm(analyze(Spelled(expression).eval(), example()))
        except TraceError:
            continue
        if canonical.unprovable_reason() is None:
            found.setdefault(canonical.output, []).append(name)
    return found


def test_spellings_with_one_canonical_form_are_one_function():
    groups = digests()
    for names in groups.values():
        first = list(fresh(Spelled(EXPRESSIONS[names[0]])))
        for name in names[1:]:
            for (_, one), (_, other) in zip(first, fresh(Spelled(EXPRESSIONS[name])), strict=True):
                assert torch.equal(one, other), f"{names[0]} and {name}"
    of = {name: digest for digest, names in groups.items() for name in names}
    same = ["x + z", "torch.add(x, other=z)", "torch.add(x, z, alpha=2)", "z.add_(x)", "x - z", "clone", "dropout"]
    assert {of[name] for name in same} == {of["x"]}
    assert of["x + y"] == of["torch.add(x, other=y)"] == of["add out of live"]
    assert of["relu"] == of["x.relu()"] == of["relu of relu"]


ZERO = """z + z|add out of zeros|torch.add(z, z, alpha=3)|z * x|x * 0|x.mul(other=z)|x *= nought|addmm|einsum
|baddbmm batch2=|addcmul zero|lerp weight=|F.linear|F.linear zero bias|conv1d|layer_norm|batch_norm|rms_norm|embedding
|relu of zero|gelu of zero|silu of zero|clamp of zero|pow 2 of zero|neg|view|reshape|cat|concat tensors=|pad|split
|unbind|mean|where|where zero|masked_fill zero|index_add source=|zeros_like|full_like|new_zeros|zero_|fill_
|copy_ of zero|interpolate|max_pool|maximum"""


@pytest.mark.parametrize("name", ZERO.replace("\n", "").split("|"))
def test_what_is_zero_is_proved_in_every_spelling(name):
    net = Spelled(EXPRESSIONS[name]).eval()
    run = trace_run(net, example())
    assert run.output.value in zero_values(run, net)


class Block(nn.Module):
    """A residual block whose branch, or whose addition, is spelled in some way."""

    def __init__(self, branch, join, seed):
        super().__init__()
        self.inner = Spelled(EXPRESSIONS[branch], seed)
        self.join = Spelled(SUMS[join], seed)
        self.fc = nn.Linear(WIDTH, WIDTH)
        self.seed = seed

    def forward(self, x):
        y = self.inner(self.fc(x))
        if self.seed % 2:
            return x + y
        dead = self.join.dead(y)
        return self.join.function(self.join, x, y, dead)


class Net(nn.Module):
    def __init__(self, choices):
        super().__init__()
        self.stem, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.blocks = nn.Sequential(*(Block(*choice) for choice in choices))

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)))


BRANCHES = st.sampled_from([*SUMS, *PRODUCTS, *LAYERS, *ELEMENTS])
CHOICES = st.lists(st.tuples(BRANCHES, st.sampled_from(list(SUMS)), st.integers(0, 9)), min_size=2, max_size=3)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(CHOICES)
def test_what_exact_removes_changes_no_bit(choices):
    torch.manual_seed(0)
    net = Net(choices).eval()
    try:
        result = shoal.compress(net, [example(4).args[0]], shoal.ExactOnly(), config=FAST)
    except (NotReachedError, NonFiniteError):
        return
    assert result.record.certificate.verdict == "identical"
    for (_, one), (_, other) in zip(fresh(net), fresh(result.model), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("join", [name for name in SUMS if name != "y + z"])  # there the shortcut is a projection
@pytest.mark.parametrize("seed", [0, 1])
def test_removing_a_block_leaves_its_shortcut_however_the_sum_is_spelled(join, seed):
    torch.manual_seed(0)
    net = Net([("x", join, seed), ("y + z", join, 1)]).eval()
    batch = example()
    blocks = [block.path for block in analyze(net, batch).chain.removable]
    for path in blocks:
        cut = remove_blocks(net, batch, [path])
        index = int(path.rpartition(".")[2])
        with torch.no_grad():
            x = torch.randn(5, WIDTH)
            stream = net.stem(x)
            for number, block in enumerate(net.blocks):
                stream = stream if number == index else block(stream)
            assert torch.equal(cut(x), net.head(stream))
