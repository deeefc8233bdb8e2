import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shoal.batches import Batch
from shoal.blocks.additions import add_operands, opaque_kinds, residual_additions
from shoal.blocks.trace import trace_run


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
