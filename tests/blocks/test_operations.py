import pytest
import torch
import torch.nn.functional as F

from shoal.blocks.operations import KEEPS_SIGN, LINEAR, NON_NEGATIVE, STRUCTURE, plain_name, without_in_place


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("add", "add"),
        ("add_", "add"),
        ("__add__", "add"),
        ("__radd__", "add"),
        ("__iadd__", "add"),
        ("relu_", "relu"),
        ("__imul__", "mul"),
        ("true_divide", "div"),
        ("__getitem__", "getitem"),
        ("conv2d", "conv2d"),
    ],
)
def test_a_function_has_one_name_in_all_its_forms(name, expected):
    assert plain_name(name) == expected


@pytest.mark.parametrize(
    ("func", "args", "kwargs"),
    [
        (torch.Tensor.__iadd__, (torch.ones(2),), {}),
        (torch.Tensor.add_, (torch.ones(2),), {"alpha": 2}),
        (torch.Tensor.__imul__, (3.0,), {}),
        (torch.Tensor.relu_, (), {}),
        (torch.relu_, (), {}),
        (F.relu, (), {"inplace": True}),
        (F.relu, (), {"inplace": False}),
        (torch.nn.functional.relu_, (), {}),
        (torch.Tensor.sub_, (torch.ones(2),), {}),
        (torch.Tensor.__add__, (1.0,), {}),
    ],
)
def test_the_out_of_place_form_gives_the_same_and_leaves_its_input(func, args, kwargs):
    x = torch.tensor([-1.0, 2.0])
    expected = func(x.clone(), *args, **kwargs)
    instead, plain = without_in_place(func, kwargs)
    assert torch.equal(instead(x, *args, **plain), expected)
    assert x.tolist() == [-1.0, 2.0]


def test_no_function_is_both_structure_and_linear():
    assert not STRUCTURE & LINEAR
    assert STRUCTURE <= KEEPS_SIGN
    assert not LINEAR & (KEEPS_SIGN | NON_NEGATIVE)


@pytest.mark.parametrize("name", sorted(NON_NEGATIVE))
def test_non_negative_functions_are_so(name):
    x = torch.linspace(-8, 8, 65)
    function = getattr(F, name, None) or getattr(torch, name)
    found = function(x, dim=0) if name == "softmax" else function(x)
    assert not bool((found < 0).any())
