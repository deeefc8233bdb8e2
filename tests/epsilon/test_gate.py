import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from shoal.epsilon.gate import Gate, checked_epsilon
from shoal.errors import UsageError

LARGE = 1e6  # L of the paper's code


def oracle(branch, epsilon):
    """The formula of the paper, in float64: four ReLUs, a maximum and a product."""
    wide = branch.double()
    s = (torch.relu(wide - epsilon) + torch.relu(-wide - epsilon)).max()
    return branch * torch.relu(1 - LARGE * torch.relu(1 - LARGE * s)).to(branch.dtype)


def gate(epsilon=1.0):
    return Gate("blocks.0", 0, epsilon)


@given(
    st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=12),
    st.floats(0.125, 4, width=32),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_the_gate_is_the_formula(values, epsilon, dtype):
    branch = torch.tensor(values).to(dtype).view(1, -1)
    beyond = float(branch.double().abs().max()) - epsilon
    if 0 < beyond < 2 / LARGE:
        return  # the formula is half open there: L is large, not infinite
    assert torch.equal(gate(epsilon)(branch), oracle(branch, epsilon))


def test_closed_is_exactly_zero_and_one_response_opens_it_whole():
    branch = torch.full((4, 3, 2, 2), -0.99)
    assert torch.count_nonzero(gate()(branch)) == 0
    branch[3, 2, 1, 1] = -1.01
    assert torch.equal(gate()(branch), branch)


def test_a_response_of_exactly_epsilon_does_not_open_it():
    assert torch.count_nonzero(gate()(torch.full((2, 2), 1.0))) == 0


@pytest.mark.parametrize("size", [0.5, 2.0])
def test_gradients_are_those_of_the_formula(size):
    left = (size * torch.ones(2, 3)).requires_grad_()
    right = (size * torch.ones(2, 3)).requires_grad_()
    weights = torch.arange(6.0).view(2, 3)
    (gate()(left) * weights).sum().backward()
    (oracle(right, 1.0) * weights).sum().backward()
    assert left.grad is not None, "a closed gate must hand zeros down, or weight decay would stop"
    assert torch.equal(left.grad, right.grad)


def test_nan_leaves_the_gate_open():
    branch = torch.tensor([[0.1, float("nan")]])
    assert torch.isnan(gate()(branch)).any()


def test_modes():
    branch = torch.tensor([[3.0, -0.1]])
    one = gate()
    one.mode = "shut"
    assert torch.count_nonzero(one(branch)) == 0
    assert one.closed is True
    one.mode = "open"
    assert torch.equal(one(0.1 * branch), 0.1 * branch)
    assert one.closed is False


def test_epsilon_zero_is_never_closed():
    branch = torch.zeros(2, 2, requires_grad=True)
    gate(0.0)(branch).sum().backward()
    assert torch.equal(branch.grad, torch.ones(2, 2))


def test_responses_are_kept_in_float32():
    one = gate()
    assert one.closed is None
    one(torch.tensor([[0.5, -0.75]]).bfloat16())
    assert (float(one.largest), float(one.mean), one.largest.dtype) == (0.75, 0.625, torch.float32)
    one.means = False
    one(torch.ones(1, 1))
    assert one.mean is None
    assert one.closed is True


@pytest.mark.parametrize("size", [0.5, 2.0])
def test_autocast_decides_as_without(size):
    layer = nn.Linear(4, 4, bias=False)
    nn.init.eye_(layer.weight)
    x = torch.full((2, 4), size)
    with torch.autocast("cpu", torch.bfloat16):
        out = gate()(layer(x))
    assert out.dtype == torch.bfloat16
    assert torch.equal(out.float(), torch.full((2, 4), size if size > 1 else 0.0))


@pytest.mark.slow
@pytest.mark.parametrize("size", [0.5, 2.0])
def test_compiled_it_is_the_same_in_one_graph(size):
    one = gate()
    compiled = torch.compile(lambda x: one(x) + x, fullgraph=True)
    x = torch.full((2, 4), size)
    assert torch.equal(compiled(x), copy.deepcopy(one)(x) + x)


@pytest.mark.parametrize("epsilon", [-0.1, float("nan"), float("inf"), "2"])
def test_bad_epsilon_is_refused(epsilon):
    with pytest.raises(UsageError, match="expected a finite number from 0"):
        checked_epsilon(epsilon)
