import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.blocks.additions import add_operands, opaque_kinds, residual_additions
from shoal.blocks.trace import trace_run
from shoal.surgery import remove_blocks


class Block(nn.Module):
    """A linear map, and whatever `join` does with the input and its result."""

    def __init__(self, join, width=4):
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.other = nn.Linear(width, width, bias=False)
        self.scale = nn.Parameter(torch.ones(width))
        self.position = nn.Parameter(torch.ones(width))
        self.norm = nn.LayerNorm(width)
        self.join = join

    def forward(self, x):
        return self.join(self, x)


def found_in(join, x=None):
    net = nn.Sequential(nn.Linear(4, 4), Block(join), nn.Linear(4, 4))
    run = trace_run(net, Batch((torch.randn(2, 4) if x is None else x,)))
    return run, residual_additions(run)


def added_in_place(self, x):
    out = self.fc(x)
    out += x
    return out


def input_overwritten(self, x):
    branch = self.fc(x)
    x += branch
    return x


@pytest.mark.parametrize(
    ("join", "stream_first"),
    [
        (lambda self, x: x + self.fc(x), True),
        (lambda self, x: self.fc(x) + x, False),
        (lambda self, x: torch.add(x, self.fc(x)), True),
        (lambda self, x: torch.add(self.fc(x), x), False),
        (lambda self, x: torch.add(x, other=self.fc(x)), True),
        (lambda self, x: torch.add(input=x, other=self.fc(x)), True),
        (lambda self, x: torch.add(other=x, input=self.fc(x)), False),
        (lambda self, x: self.fc(x).add(x), False),
        (lambda self, x: self.fc(x).add_(x), False),
        (lambda self, x: torch.add(x, self.fc(x), alpha=1), True),
        (added_in_place, False),
        (input_overwritten, True),
    ],
)
def test_an_addition_is_found_in_every_form(join, stream_first):
    run, found = found_in(join)
    (one,) = found
    assert one.shortcut == "identity"
    assert run.calls[one.owner].path == "1"
    assert one.origin == one.stream == run.calls[1].outputs[0]
    stream, branch = add_operands(run.ops[one.op])[:: 1 if stream_first else -1]
    assert (stream, branch) == (one.stream, one.branch)
    assert one.result in run.calls[2].outputs


@pytest.mark.parametrize(
    ("join", "kind"),
    [
        (lambda self, x: x[:, :] + self.fc(x), "reshape"),
        (lambda self, x: F.pad(x[:, 1:], (1, 0)) + self.fc(x), "reshape"),
        (lambda self, x: x.view(-1, 4) + self.fc(x), "reshape"),
        (lambda self, x: self.other(x) + self.fc(x).relu(), "projection"),
        (lambda self, x: self.norm(x) + self.other(self.fc(x)), "projection"),
    ],
)
def test_a_shortcut_may_be_reshaped_or_projected(join, kind):
    _, (one,) = found_in(join)
    assert one.shortcut == kind


def rotary(self, x):
    half = torch.cat([-x[:, 2:], x[:, :2]], dim=1)
    return x * torch.cos(x) + half * torch.sin(x)


def mixer(self, x):
    y = self.fc(x).tanh()
    return y * x + x * self.scale


@pytest.mark.parametrize(
    "join",
    [
        rotary,
        mixer,
        lambda self, x: self.fc(0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * x**3)))),
        lambda self, x: self.fc(x + self.position),
        lambda self, x: self.fc(x) + self.position,
        lambda self, x: self.fc(x) + 1,
        lambda self, x: x + x,
        lambda self, x: x + x.relu(),
        lambda self, x: torch.add(x, self.fc(x), alpha=2),
        lambda self, x: x - self.fc(x),
        lambda self, x: self.fc(x).sigmoid() + self.other(x).sigmoid(),
        lambda self, x: x[:1] + self.fc(x),
        lambda self, x: self.fc(x) + torch.ones(4),
    ],
    ids="rotary mixer gelu position bias number double weightless alpha minus gates broadcast constant".split(),
)
def test_other_additions_are_not_residual(join):
    assert found_in(join)[1] == []


def test_of_two_projections_the_lighter_one_is_the_shortcut():
    def join(self, x):
        return self.norm(x) + self.other(x)

    run, (one,) = found_in(join)
    producer = run.ops[run.values[one.stream].producer]
    assert producer.name == "layer_norm"


def test_two_additions_in_a_row_are_two_units():
    def join(self, x):
        x = x + self.fc(x)
        return x + self.other(self.norm(x))

    _, found = found_in(join)
    assert len(found) == 2
    assert found[1].origin == found[0].result


def test_an_addition_inside_a_branch_belongs_to_it():
    def join(self, x):
        inner = self.fc(x)
        inner = inner + self.other(inner)
        return x + inner

    run, found = found_in(join)
    assert len(found) == 1
    assert found[0].op == max(op.index for op in run.ops if add_operands(op) is not None)


def test_a_long_skip_over_a_chain_gives_way_to_the_blocks():
    class Long(nn.Module):
        def __init__(self):
            super().__init__()
            plus = lambda self, x: x + self.fc(x)
            self.blocks = nn.Sequential(Block(plus), Block(plus), Block(plus))

        def forward(self, x):
            return x + self.blocks(x)

    run = trace_run(nn.Sequential(nn.Linear(4, 4), Long()), Batch((torch.randn(2, 4),)))
    assert [run.calls[one.owner].path for one in residual_additions(run)] == ["1.blocks.0", "1.blocks.1", "1.blocks.2"]


def test_an_addition_outside_every_module_has_the_whole_network_as_owner():
    class Outside(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.fc = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.stem(x)
            return x + self.fc(x)

    run = trace_run(Outside(), Batch((torch.randn(2, 4),)))
    (one,) = residual_additions(run)
    assert run.calls[one.owner].path == ""


def test_arguments_that_cannot_be_written_down_are_named():
    class Asks(nn.Module):
        def forward(self, x, cache=None):
            return x * 2

    run = trace_run(Asks(), Batch((torch.randn(2),), {"cache": {1, 2}}))
    assert opaque_kinds(run.calls[0]) == ["set"]


class Lora(nn.Module):
    """A linear map with an adapter beside it, in several spellings."""

    def __init__(self, width, out, form="lora"):
        super().__init__()
        self.base, self.down, self.up = nn.Linear(width, out), nn.Linear(width, 2), nn.Linear(2, out)
        self.form = form

    def forward(self, x):
        base, inner = self.base(x), self.down(x)
        if self.form == "adapter":
            return base + self.up(inner.relu())
        if self.form == "plain":
            return self.up(inner) + base
        if self.form == "keyword":
            return torch.add(base, other=self.up(inner))
        if self.form == "two":
            return base + self.up(inner) * 2 + self.up(inner * 0.5)
        base += self.up(inner) * 2.0
        return base


class Adapted(nn.Module):
    def __init__(self, form, width=4):
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(width), Lora(width, 6, form), Lora(6, width, form)

    def forward(self, x):
        return x + self.b(self.a(self.norm(x)).relu())


@pytest.mark.parametrize("form", ["lora", "adapter", "plain", "keyword", "two"])
def test_layers_made_of_sums_do_not_hide_their_block(form):
    net = nn.Sequential(nn.Linear(4, 4), Adapted(form), Adapted(form), nn.Linear(4, 4))
    run = trace_run(net, Batch((torch.randn(2, 4),)))
    assert [(run.calls[one.owner].path, one.shortcut) for one in residual_additions(run)] == [
        ("1", "identity"),
        ("2", "identity"),
    ]


class Rep(nn.Module):
    """Two convolutions and an identity that a deployed network merges."""

    def __init__(self, width=4):
        super().__init__()
        self.wide = nn.Conv2d(width, width, 3, padding=1)
        self.narrow, self.norm = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)

    def forward(self, x):
        return F.relu(self.wide(x) + self.narrow(x) + self.norm(x))


class Bottle(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = Rep(), Rep()

    def forward(self, x):
        return self.b(self.a(x)) + x


def test_two_merged_convolutions_do_not_hide_their_block_and_are_blocks_where_nothing_is_around_them():
    x = torch.randn(2, 4, 5, 5)
    run = trace_run(nn.Sequential(nn.Conv2d(4, 4, 1), Bottle(), Bottle()), Batch((x,)))
    assert [run.calls[one.owner].path for one in residual_additions(run)] == ["1", "2"]
    run = trace_run(nn.Sequential(nn.Conv2d(4, 4, 1), Rep(), Rep()), Batch((x,)))
    assert {run.calls[one.owner].path for one in residual_additions(run)} == {"1", "2"}


def test_an_adapted_projection_is_a_shortcut():
    def join(self, x):
        return F.relu(self.adapted(x) + self.other(F.relu(self.fc(x))))

    block = Block(join)
    block.adapted = Lora(4, 4)
    run = trace_run(nn.Sequential(nn.Linear(4, 4), block, nn.Linear(4, 4)), Batch((torch.randn(2, 4),)))
    (one,) = residual_additions(run)
    assert (run.calls[one.owner].path, one.shortcut) == ("1", "projection")


@pytest.mark.parametrize(
    "filled",
    [
        torch.zeros_like,
        lambda x: x.mul(0),
        lambda x: x * 0,
        lambda x: torch.zeros(x.shape),
        lambda x: torch.zeros(len(x), 4),
        lambda x: x.new_zeros(size=(len(x), 4)),
        lambda x: torch.full((len(x), 4), 0.0),
    ],
)
@pytest.mark.parametrize("keyword", [False, True])
def test_a_shortcut_may_be_widened_with_zeros_however_they_are_made(filled, keyword):
    def join(self, x):
        parts = [x, filled(x)]
        wide = torch.cat(tensors=parts, dim=1) if keyword else torch.cat(parts, 1)
        return wide + self.wide(self.fc(x).relu())

    block = Block(join)
    block.wide = nn.Linear(4, 8)
    net = nn.Sequential(nn.Linear(4, 4), block, nn.Linear(8, 4)).eval()
    batch = Batch((torch.randn(3, 4),))
    found = analyze(net, batch).chain["1"]
    assert (found.removable, found.shortcut) == (True, "reshape")
    x = torch.randn(5, 4)
    with torch.no_grad():
        left = analyze(net, batch).shortcut_modules["1"](x)
    assert torch.equal(left, torch.cat([x, torch.zeros(5, 4)], 1))


@pytest.mark.parametrize(
    "order", [lambda x, a, b: sum((x, a, b)), lambda x, a, b: 0 + x + a + b, lambda x, a, b: sum([x, a]) + b]
)
def test_a_sum_that_starts_at_zero_is_the_stream(order):
    def join(self, x):
        return order(x, self.fc(self.norm(x)), torch.relu(self.other(x)))

    run, additions = found_in(join)
    assert [(run.calls[addition.owner].path, addition.shortcut) for addition in additions] == [("1", "identity")] * 2
    net = nn.Sequential(nn.Linear(4, 4), Block(join), nn.Linear(4, 4)).eval()
    x = torch.randn(3, 4)
    cut = remove_blocks(net, Batch((x,)), ["1"])
    for rows in (3, 1):
        assert torch.equal(cut(x[:rows]), net[2](net[0](x[:rows])))


def test_a_sum_that_starts_at_another_number_is_not_the_stream():
    assert found_in(lambda self, x: (1 + x) + self.fc(x))[1] == []
