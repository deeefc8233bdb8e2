from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.blocks.template import Opaque, TensorRef, leaves, substitute, template, tensor_refs

plain = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just(torch.float16) | st.just(...)
nested = st.recursive(
    plain | st.builds(TensorRef, st.integers(0, 5)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(nested)
def test_filling_a_template_and_taking_it_again_is_the_template(item):
    tensors = {number: torch.full((1,), float(number)) for number in range(6)}
    numbers = {id(tensor): number for number, tensor in tensors.items()}
    assert template(substitute(item, tensors), lambda tensor: TensorRef(numbers[id(tensor)])) == item


@given(nested)
def test_references_are_the_reference_leaves_in_order(item):
    assert tensor_refs(item) == [leaf.value for leaf in leaves(item) if isinstance(leaf, TensorRef)]


def test_slices_hold_tensors_too():
    index = slice(torch.tensor(1), None, 2)
    found = template((index,), lambda tensor: TensorRef(9))
    assert tensor_refs(found) == [9]
    assert substitute(found, {9: 3}) == (slice(3, None, 2),)


def test_mappings_and_dataclasses_become_dicts():
    @dataclass
    class Output:
        logits: torch.Tensor
        loss: float | None = None

    refer = lambda tensor: TensorRef(0)
    assert template(OrderedDict(a=torch.ones(1)), refer) == {"a": TensorRef(0)}
    assert template(Output(torch.ones(1)), refer) == {"logits": TensorRef(0), "loss": None}


@pytest.mark.parametrize("item", [object(), {1}, torch.Generator()])
def test_what_cannot_be_written_down_leaves_its_kind(item):
    assert template([item], lambda tensor: TensorRef(0)) == [Opaque(type(item).__name__)]


def test_functions_stand_for_themselves():
    assert template(torch.relu, lambda tensor: TensorRef(0)) is torch.relu


def test_a_missing_value_is_an_error_and_no_silent_none():
    with pytest.raises(KeyError):
        substitute([TensorRef(1)], {})
