import copy

import pytest
import torch
from given import dissected, mlp, randn, spans
from torch import nn

import networks
from shoal.errors import UsageError
from shoal.plan import Replacement
from shoal.replace import REPLACEMENTS, build_replacement, with_shortcut
from shoal.replace.kinds import Solution
from shoal.replace.modules import ResidualReplacement, load_solution_

LIKE = torch.zeros(1)


@pytest.fixture(scope="module")
def images():
    """Spans of a network on images, by start and stop."""
    return spans(dissected(lambda: networks.CifarResNet(2, widths=(8, 16, 32)), 3, 8, 8))


@pytest.fixture(scope="module")
def tokens():
    return spans(dissected(lambda: networks.NumberedNet(8), 5, 4))[0, 1]


@pytest.mark.parametrize("kind", ["linear", "conv3", "conv5"])
@pytest.mark.parametrize("place", [(0, 1), (0, 3), (1, 6), (2, 3)])
def test_a_stand_in_returns_what_its_span_returns_in_shape(images, kind, place):
    span = images[place]
    module = build_replacement(REPLACEMENTS[kind].spec(span), LIKE)
    y = module(torch.randn(2, *span.in_shape))
    assert y.shape == (2, *span.out_shape)
    assert y.min() >= 0
    assert module[0].kernel_size == (REPLACEMENTS[kind].kernel,) * 2
    assert not module.training


@pytest.mark.parametrize("kernel", [1, 3])
def test_low_rank_goes_through_few_features_beside_the_shortcut(kernel):
    stand_in = Replacement(
        kind="lowrank", layout="channels_first", in_channels=4, out_channels=4, kernel=kernel, rank=2, shortcut=True,
        tail="relu",
    )  # fmt: skip
    module = build_replacement(stand_in, LIKE)
    assert isinstance(module, ResidualReplacement)
    assert module.branch[0].out_channels == module.branch[1].in_channels == 2
    assert module.branch[0].bias is None
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(module(x), torch.relu(x + module.branch(x)))


def test_tokens_get_a_linear_map_and_keep_their_tail(tokens):
    module = build_replacement(REPLACEMENTS["linear"].spec(tokens), LIKE)
    assert isinstance(module[0], nn.Linear)
    assert isinstance(module[1], nn.Identity)
    assert module(torch.randn(2, 5, 8)).shape == (2, 5, 8)
    low = build_replacement(REPLACEMENTS["lowrank1/4"].spec(tokens), LIKE)
    assert [tuple(one.shape) for one in low.branch.parameters()] == [(2, 8), (8, 2), (8,)]


def test_a_shortcut_is_of_spans_that_keep_their_shape(images):
    for place in ((0, 3), (2, 3)):
        with pytest.raises(UsageError, match="from 8 to 16 channels at stride 2 has no shortcut"):
            with_shortcut(REPLACEMENTS["conv3"].spec(images[place]))
    with pytest.raises(UsageError, match="an identity with a shortcut would be the input twice"):
        with_shortcut(REPLACEMENTS["identity"].spec(spans(dissected(mlp, 4))[1, 2]))
    beside = with_shortcut(REPLACEMENTS["conv3"].spec(images[0, 2]))
    assert beside.shortcut
    assert with_shortcut(beside) == beside


SAVED = ["conv3", "linear", "scale", "lowrank1/4"]


@pytest.mark.parametrize("kind", SAVED)
def test_the_state_dict_fits_a_stand_in_built_again(images, kind):
    stand_in = REPLACEMENTS[kind].spec(images[0, 2])
    one, other = (
        build_replacement(stand_in, LIKE),
        build_replacement(type(stand_in).model_validate_json(stand_in.model_dump_json()), LIKE),
    )
    for parameter in one.parameters():
        nn.init.normal_(parameter)
    other.load_state_dict(one.state_dict())
    x = torch.randn(2, 8, 8, 8)
    assert torch.equal(one(x), other(x))


@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.parametrize("kind", SAVED)
def test_it_can_be_copied_and_trained(images, kind, shortcut):
    stand_in = REPLACEMENTS[kind].spec(images[0, 2])
    module = copy.deepcopy(build_replacement(with_shortcut(stand_in) if shortcut else stand_in, LIKE)).train()
    module(torch.randn(2, 8, 8, 8)).square().sum().backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in module.parameters())


@pytest.mark.parametrize("kind", SAVED)
def test_building_takes_the_dtype_and_moves_no_random_state(images, kind):
    before = torch.get_rng_state()
    module = build_replacement(REPLACEMENTS[kind].spec(images[0, 2]), LIKE.bfloat16())
    assert {one.dtype for one in module.parameters()} == {torch.bfloat16}
    assert torch.equal(torch.get_rng_state(), before)


def test_filling_writes_the_map_in_the_order_of_the_flattened_weight(images):
    module = build_replacement(REPLACEMENTS["conv3"].spec(images[0, 3]), LIKE.double())
    weight, bias = randn(16, 8, 3, 3), randn(16)
    load_solution_(module, Solution({"weight": weight.flatten(1), "bias": bias}, weight.flatten(1), bias, 0.0))
    x = randn(2, 8, 8, 8, seed=1)
    torch.testing.assert_close(module(x), nn.functional.conv2d(x, weight, bias, stride=2, padding=1).relu())


def test_filling_what_stands_beside_a_shortcut(images):
    module = build_replacement(REPLACEMENTS["lowrank1/4"].spec(images[0, 2]), LIKE.double())
    left, rows, bias = randn(8, 2), randn(2, 8), randn(8)
    load_solution_(module, Solution({"0.weight": rows, "1.weight": left, "1.bias": bias}, left @ rows, bias, 0.0))
    x = randn(2, 8, 8, 8, seed=1)
    expected = x + torch.einsum("oi,nihw->nohw", left @ rows, x) + bias[:, None, None]
    torch.testing.assert_close(module(x), expected.relu())
