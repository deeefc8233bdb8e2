import copy

import pytest
import torch
from torch import nn

from shoal.errors import SurgeryError
from shoal.training.optim import ClippedOptimizer, adaptive_clip_, cosine_lr, optimizer_for
from teaching import TokenNet, same, teacher


def test_a_gradient_is_limited_by_the_size_of_what_it_changes():
    tiny, large = (nn.Parameter(scale * torch.ones(2, 4)) for scale in (0.01, 1.0))
    for one in (tiny, large):
        one.grad = torch.full((2, 4), 0.05)
    adaptive_clip_([tiny, large], 0.1)
    assert float(tiny.grad[0].norm()) == pytest.approx(0.1 * 0.02)
    assert float(large.grad[0].norm()) == pytest.approx(0.1)


def test_a_blown_up_row_does_not_hold_the_others_back():
    weight = nn.Parameter(torch.ones(2, 4))
    weight.grad = torch.tensor([[1e6] * 4, [0.01] * 4])
    adaptive_clip_([weight], 0.1)
    assert float(weight.grad[0].norm()) == pytest.approx(0.2)
    assert weight.grad[1].tolist() == pytest.approx([0.01] * 4)


def test_zeros_can_move():
    weight, bias = nn.Parameter(torch.zeros(2, 4)), nn.Parameter(torch.zeros(4))
    for one in (weight, bias):
        one.grad = torch.ones_like(one)
    adaptive_clip_([weight, bias], 0.1)
    assert float(weight.grad.norm()) > 0
    assert float(bias.grad.norm()) > 0


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_an_optimizer_goes_on_where_it_was(kind):
    one = nn.Linear(3, 2)

    def steps(model, stepping, count):
        for number in range(count):
            model(torch.full((4, 3), float(number + 1))).square().sum().backward()
            stepping.step(0.01)

    first = ClippedOptimizer(one, kind, 1e-4, 0.02)
    steps(one, first, 3)
    other = copy.deepcopy(one)
    second = ClippedOptimizer(other, kind, 1e-4, 0.02)
    second.load(first.tensors())
    steps(one, first, 2)
    steps(other, second, 2)
    assert same(one, other)


def test_which_optimizer():
    assert optimizer_for(teacher()) == "sgd"
    assert optimizer_for(TokenNet()) == "adamw"
    assert optimizer_for(nn.Sequential(nn.Conv2d(1, 1, 1), nn.LayerNorm(4))) == "adamw"


def test_a_network_without_anything_to_learn_is_refused():
    with pytest.raises(SurgeryError, match="requires_grad_"):
        ClippedOptimizer(nn.Linear(2, 2).requires_grad_(False), "sgd", 0.0, 0.0)


def test_up_in_a_line_and_down_along_a_cosine():
    assert cosine_lr(0.0, 2.0, 0.1) == 0
    assert cosine_lr(0.05, 2.0, 0.1) == pytest.approx(1.0)
    assert cosine_lr(0.1, 2.0, 0.1) == pytest.approx(2.0)
    assert cosine_lr(0.55, 2.0, 0.1) == pytest.approx(1.0)
    assert cosine_lr(1.0, 2.0, 0.1) == pytest.approx(0.0)
    assert cosine_lr(7.0, 2.0, 0.1) == pytest.approx(0.0)


def test_without_a_warm_up_it_begins_at_the_top():
    assert cosine_lr(0.0, 2.0, 0.0) == 2.0
