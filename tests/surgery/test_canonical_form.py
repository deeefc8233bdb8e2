import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import networks
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.surgery.canonical_form import CanonicalForm, content_digest


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.fc = nn.Linear(4, 4)
        self.held = torch.arange(4.0)
        self.nought, self.minus = torch.zeros(4), -torch.zeros(4)

    def forward(self, x):
        return self.function(self, x)


def form(net, x=None):
    x = torch.zeros(2, 4) if x is None else x
    return CanonicalForm(analyze(net.eval(), Batch((x,)))).output


def of_function(function, x=None):
    torch.manual_seed(0)
    return form(Function(function), x)


def twice_in_place(self, x):
    out = self.fc(x)
    out += 1
    return out.relu_()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda self, x: F.relu(self.fc(x) + 1), twice_in_place),
        (lambda self, x: torch.add(self.fc(x), x), lambda self, x: self.fc(x).add_(x)),
        (lambda self, x: self.fc(x), lambda self, x: self.fc(x.clone()).contiguous()),
        (lambda self, x: self.fc(x), lambda self, x: F.dropout(self.fc(x), 0.5, training=False)),
        (lambda self, x: F.relu(self.fc(x)), lambda self, x: F.relu(F.relu(self.fc(x)))),
        (lambda self, x: F.relu(self.fc(x)), lambda self, x: torch.relu(self.fc(x))),
        (lambda self, x: self.fc(x), lambda self, x: self.fc(x) + x * self.nought),
        (lambda self, x: self.fc(x) * self.nought, lambda self, x: self.fc(x) * self.minus),
    ],
    ids="in-place add_ copies dropout relu-twice torch.relu zero-branch minus-zero".split(),
)
def test_what_cannot_matter_is_taken_away(one, other):
    assert of_function(one) == of_function(other)


def aliased(start):
    def forward(self, x):
        base = self.fc(x)
        left, right = base[:, :2], base[:, start : start + 2]
        left.mul_(3)
        return right * 2

    return forward


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda self, x: self.fc(x), lambda self, x: self.fc(x) + 1),
        (lambda self, x: self.fc(x) + 1, lambda self, x: self.fc(x) + 2),
        (lambda self, x: self.fc(x)[:, 1:], lambda self, x: self.fc(x)[:, :-1]),
        (lambda self, x: self.fc(x).sum(0), lambda self, x: self.fc(x).sum(1)),
        (lambda self, x: self.fc(x) - x, lambda self, x: x - self.fc(x)),
        (lambda self, x: F.relu(self.fc(x)), lambda self, x: self.fc(x)),
        (lambda self, x: F.gelu(x), lambda self, x: F.gelu(x, approximate="tanh")),
        (lambda self, x: self.fc(x) + self.held, lambda self, x: self.fc(x) + self.held * 2),
        (lambda self, x: (self.fc(x), x), lambda self, x: (x, self.fc(x))),
        (lambda self, x: {"a": self.fc(x)}, lambda self, x: {"b": self.fc(x)}),
        (lambda self, x: self.fc(x).split([1, 3], 1)[1], lambda self, x: self.fc(x).split([1, 3], 1)[0]),
        (lambda self, x: F.alpha_dropout(x * self.nought, 0.5, True), lambda self, x: x * self.nought),
        (aliased(0), aliased(2)),
        (aliased(1), aliased(2)),
    ],
)
def test_what_matters_is_told_apart(one, other):
    assert of_function(one) != of_function(other)


def test_names_of_modules_do_not_matter_but_weights_do():
    torch.manual_seed(0)
    first, second, head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
    plain = nn.Sequential(first, nn.ReLU(), second, head)
    nested = nn.Sequential(nn.Sequential(first, nn.ReLU(inplace=True)), nn.Identity(), nn.Sequential(second, head))
    swapped = nn.Sequential(second, nn.ReLU(), first, head)
    assert form(plain) == form(nested) == form(copy.deepcopy(nested))
    assert form(plain) != form(swapped)
    other = copy.deepcopy(plain)
    with torch.no_grad():
        other[2].weight[3, 3] += 1e-6
    assert form(plain) != form(other)


def test_two_blocks_with_the_same_weights_do_not_fall_into_one():
    block = networks.PreactBlock(4)
    x = torch.zeros(1, 4, 5, 5)
    assert form(nn.Sequential(block), x) != form(nn.Sequential(block, copy.deepcopy(block)), x)


def test_a_deep_network_does_not_exceed_the_stack():
    net = nn.Sequential(*(nn.Tanh() for _ in range(3000)))
    assert form(net) == form(copy.deepcopy(net))


def test_minus_zero_and_zero_have_one_digest():
    zero = torch.zeros(3)
    assert content_digest(zero) == content_digest(-zero)
    assert content_digest(zero) != content_digest(zero.double())
    assert content_digest(zero) != content_digest(zero.view(3, 1))
    assert content_digest(zero) != content_digest(torch.full((3,), 1e-45))
    assert content_digest(torch.zeros(0)) == content_digest(torch.zeros(0))
    assert content_digest(torch.arange(6).view(2, 3).T) == content_digest(torch.arange(6).view(2, 3).T.contiguous())
    assert len({content_digest(torch.ones(2, dtype=kind)) for kind in (torch.bfloat16, torch.float16, torch.bool)}) == 3


def times_size(make):
    """Takes a number out of the input by the size of something."""

    def forward(self, x):
        return self.fc(x) * len(make(x, x.abs().max().long() + 1))

    return forward


SIZED_BY_VALUES = [
    times_size(make)
    for make in (
        lambda x, n: torch.arange(n),
        lambda x, n: torch.arange(0, end=n),
        lambda x, n: torch.zeros(n),
        lambda x, n: x.new_ones((n, 2)),
        lambda x, n: torch.linspace(0, 1, steps=n),
        lambda x, n: torch.zeros(9)[:n],
        lambda x, n: torch.zeros(9, 2)[:n, ...],
        lambda x, n: torch.zeros(9).narrow(0, 0, n),
        lambda x, n: torch.zeros(1).expand(n),
        lambda x, n: x.repeat(n, 1),
        lambda x, n: torch.zeros(1).repeat_interleave(n),
        lambda x, n: torch.zeros(9).tensor_split(n[None])[0],
        lambda x, n: torch.zeros(9).split([n, 9 - n])[0],
        lambda x, n: F.pad(x[0], (0, n)),
        lambda x, n: F.interpolate(x[None], size=(n,))[0, 0],
        lambda x, n: torch.zeros(9).topk(n)[0],
        lambda x, n: F.one_hot(n),
        lambda x, n: torch.unique(x),
        lambda x, n: torch.where(x > 0)[0],
        lambda x, n: x[x > 0],
        lambda x, n: x.nonzero(as_tuple=True)[0],
    )
]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda self, x: self.fc(x) if x.sum() > 0 else x, "decides in Python by the values of tensors"),
        (lambda self, x: self.fc(x) + x.max().item(), "decides in Python by the values of tensors"),
        (lambda self, x: self.fc(x) + torch.rand(4), "draws random numbers|no torch function made"),
        (lambda self, x: self.fc(x) + torch.rand_like(x), "draws random numbers"),
        (lambda self, x: F.dropout(self.fc(x), 0.5, training=True), "draws random numbers"),
        (lambda self, x: F.alpha_dropout(self.fc(x), 0.5, training=True), "draws random numbers"),
        (lambda self, x: self.fc(x) * float(f"{x.max()}"), "decides in Python by the values of tensors"),
        (lambda self, x: self.fc(x) * len(repr(x)), "decides in Python by the values of tensors"),
        (lambda self, x: self.fc(x) * (2.0 in x), "decides in Python by the values of tensors"),
        (lambda self, x: torch.copysign(self.fc(x), x + torch.zeros(4) * x), "copysign tells -0 from 0"),
        (lambda self, x: (self.fc(x) + torch.zeros(4) * x).view(torch.int32), "view tells -0 from 0"),
        (lambda self, x: self.fc(x) * bool(x.data_ptr()), "decides in Python by the values of tensors"),
        (lambda self, x: self.fc(x) + torch.vmap(lambda row: row * 0 + 1)(x), "no torch function made"),
        *((sized, "size of what .* returns depends on the numbers") for sized in SIZED_BY_VALUES),
    ],
)
def test_where_nothing_can_be_said_it_says_why(function, said):
    canonical = CanonicalForm(analyze(Function(function), Batch((torch.ones(2, 4),))))
    assert re.search(said, canonical.unprovable_reason() or "")


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x: self.fc(x)[:, x.argmax() % 4],
        lambda self, x: self.fc(x).clamp(max=x.max()),
        lambda self, x: torch.stack([self.fc(x).max(), x.min()]),
        lambda self, x: self.fc(x).split([1, 3], 1)[1],
        lambda self, x: F.pad(self.fc(x), (0, x.shape[0])),
    ],
)
def test_a_number_that_is_a_tensor_is_no_obstacle_where_it_sets_no_size(function):
    assert CanonicalForm(analyze(Function(function).eval(), Batch((torch.ones(2, 4),)))).unprovable_reason() is None


def test_without_an_obstacle_there_is_none():
    net = networks.CifarResNet(1, widths=(4, 8, 12))
    assert CanonicalForm(analyze(net, Batch((torch.zeros(1, 3, 8, 8),)))).unprovable_reason() is None


def test_premises_name_what_was_taken_away():
    net = networks.randomised(networks.CifarResNet(2, widths=(4, 8, 12)))
    with torch.no_grad():
        net.layer2[1].bn2.weight.zero_()
        net.layer2[1].bn2.bias.zero_()
    canonical = CanonicalForm(analyze(net, Batch((torch.zeros(1, 3, 8, 8),))))
    assert not canonical.assumptions
    assert canonical.output
    assert list(canonical.assumptions) == [
        "the branch added in 'layer2.1' is zero: 'layer2.1.bn2.weight' is zero and 'layer2.1.bn2.bias' is zero",
        "the ReLU in 'layer2.1' does nothing: its input is never negative",
    ]
