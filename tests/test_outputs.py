"""Every tensor of an output is read, under its name, and compared as what it is."""

from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import DataError, NonFiniteError, UsageError
from shoal.outputs import Distance, check_numbers, chosen_outputs, distance, mismatch, read_outputs, rebuilt

A, B = torch.ones(2, 3), torch.arange(4.0).reshape(2, 2)
Pair = namedtuple("Pair", "first second")


@dataclass
class Scores:
    score: object
    other: object = None


class Holder(OrderedDict):
    """As a ModelOutput holds its entries."""


class DynamicCache:
    def get_seq_length(self):
        return 3


@pytest.mark.parametrize(
    ("output", "names"),
    [
        (A, [""]),
        ((A, B), ["[0]", "[1]"]),
        ([A, [B, A]], ["[0]", "[1][0]", "[1][1]"]),
        ({"logits": A, "aux": {"logits": B}}, ["logits", "aux.logits"]),
        ({"a b": A, 3: B}, ["['a b']", "[3]"]),
        (Pair(A, (B,)), ["first", "second[0]"]),
        (Scores(A, Scores(B)), ["score", "other.score"]),
        (Holder(feature_maps=(A, B)), ["feature_maps[0]", "feature_maps[1]"]),
        (SimpleNamespace(loss=A, logits=B), ["loss", "logits"]),
        (torch.distributions.Normal(A, A), ["loc", "scale"]),
        ({"x": np.ones((2, 2))}, ["x"]),
        ({"logits": A, "past_key_values": ((B, B),), "state": DynamicCache()}, ["logits"]),
    ],
)
def test_every_tensor_has_a_name(output, names):
    assert list(read_outputs(output).tensors) == names


def test_what_is_no_tensor_is_kept_beside():
    assert read_outputs((A, None, 3, "ok", [])).plain == {"[1]": None, "[2]": 3, "[3]": "ok", "[4]": "list"}


def test_complex_sparse_and_quantised_tensors_are_read_as_numbers():
    quantised = torch.quantize_per_tensor(A, 0.5, 0, torch.qint8)
    found = read_outputs([torch.complex(A, 2 * A), A.to_sparse(), quantised]).floating
    assert [tuple(one.shape) for one in found.values()] == [(2, 3, 2), (2, 3), (2, 3)]
    assert torch.equal(found["[1]"], A)
    assert torch.equal(found["[2]"], A)


def endless():
    item = []
    item.append(item)
    return item


@pytest.mark.parametrize(("output", "said"), [((A, object()), r"'\[1\]'.* is a object"), (endless(), "nested")])
def test_what_cannot_be_read_is_refused_by_name(output, said):
    with pytest.raises(DataError, match=said):
        read_outputs(output)


def test_outputs_are_chosen_by_name_or_by_what_holds_them():
    outputs = read_outputs({"early": A, "maps": [A, B], "maps2": B})
    assert list(chosen_outputs(outputs, ())) == ["early", "maps[0]", "maps[1]", "maps2"]
    assert list(chosen_outputs(outputs, ("maps",))) == ["maps[0]", "maps[1]"]
    with pytest.raises(UsageError, match=r"no output 'late'.*'early', 'maps\[0\]'"):
        chosen_outputs(outputs, ("late",))


def test_a_mapping_stays_what_it_is_when_rebuilt():
    output = defaultdict(list, a=torch.ones(2), n=3)
    twice = rebuilt(output, lambda tensor: 2 * tensor)
    assert type(twice) is defaultdict
    assert twice["nothing"] == []
    assert torch.equal(twice["a"], torch.full((2,), 2.0))
    assert torch.equal(output["a"], torch.ones(2))


@pytest.mark.parametrize("output", [A, (A, B), [A], {"x": A, "y": (B,)}, Pair(A, B), Scores(A, B), Holder(z=A)])
def test_a_structure_is_rebuilt(output):
    twice = rebuilt(output, lambda tensor: 2 * tensor)
    before, after = read_outputs(output).tensors, read_outputs(twice).tensors
    assert type(twice) is type(output)
    assert list(after) == list(before)
    assert all(torch.equal(after[name], 2 * before[name]) for name in before)


@pytest.mark.parametrize(
    ("left", "right", "said"),
    [
        (A, (A,), "the output is a tensor of one network and missing of the other"),
        ((A, B), (A,), r"'\[1\]' is a tensor of one network and missing"),
        ((A, B), (A, None), r"'\[1\]' is a tensor of one network and None of the other"),
        ((A,), (A.double(),), r"'\[0\]' is of the dtypes torch.float32 and torch.float64"),
        ({"x": A}, {"x": A[:, :2]}, r"'x' is of shape \(2, 3\) and \(2, 2\)"),
    ],
)
def test_a_mismatch_is_named(left, right, said):
    import re

    assert re.search(said, mismatch(read_outputs(left), read_outputs(right)) or "")


def test_boxes_may_differ_in_number_but_rows_of_samples_may_not():
    left, right = read_outputs([torch.ones(5, 4)]), read_outputs([torch.ones(3, 4)])
    assert mismatch(left, right)
    assert mismatch(left, right, rows=2) is None
    assert mismatch(left, right, rows=5)


def test_masked_scores_are_equal_to_themselves_and_to_nothing_else():
    masked = A.masked_fill(torch.tensor([False, True, False]), -torch.inf)
    assert distance(masked, masked.clone()).bitwise
    assert distance(masked, masked.clone()).largest == 0
    assert distance(masked, A).largest == torch.inf
    assert distance(masked, A).place == (0, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("special", [None, -torch.inf, torch.nan])
def test_a_distance_in_pieces_is_that_of_the_whole(monkeypatch, dtype, special):
    left = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    for seed, scale in enumerate((0.0, 1e-3, 1.0)):
        right = left + scale * torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(seed + 1)).to(dtype)
        if special is not None:
            left[1, 2, 3] = special
        off = (left.double() - right.double()).abs().nan_to_num(torch.inf, torch.inf).masked_fill(left == right, 0)
        whole = distance(left, right)
        for piece in (1, 4, 1000):
            monkeypatch.setattr("shoal.outputs._PIECE", piece)
            assert distance(left, right) == whole
        assert whole.largest == float(off.max())
        assert off[whole.place] == off.max()
        assert whole.bitwise == bool((left == right).all())


def test_of_a_scalar_and_of_nothing():
    assert distance(torch.tensor(1.5), torch.tensor(1.0)) == Distance(0.5, (), bitwise=False)
    assert distance(torch.ones(0, 3), torch.ones(0, 3)) == Distance(0.0, (), bitwise=True)


@given(st.integers(0, 5), st.sampled_from([torch.int64, torch.bool, torch.uint8]))
def test_indices_are_equal_or_not(place, dtype):
    left = torch.zeros(2, 3, dtype=dtype)
    right = left.clone()
    right.view(-1)[place] = 1
    assert distance(left, left) == distance(right, right)
    assert distance(left, right).largest == torch.inf
    assert distance(left, right).place == (place // 3, place % 3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_refused_by_name(bad):
    late = B.clone()
    late[0, 0] = bad
    check_numbers({"early": A, "masked": torch.full((2,), -torch.inf), "index": torch.ones(2).long()})
    with pytest.raises(NonFiniteError, match="'late' holds NaN or Inf: 1 of 4"):
        check_numbers({"early": A, "late": late})
