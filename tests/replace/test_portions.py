from itertools import pairwise

import pytest
import torch
from given import dissected

import networks
from shoal.replace import build_segments, spans_of, students_of
from shoal.replace.students.memory_batches import bytes_to_learn, memory_batches


@pytest.fixture(scope="module")
def wanted():
    anatomy = dissected(lambda: networks.CifarResNet(2, widths=(4, 8, 16)), 3, 8, 8)
    line = build_segments(anatomy)
    return students_of(anatomy, line, spans_of(anatomy, line, 2), ["block", "narrow"])


def test_a_student_holds_its_weights_four_times_while_it_learns(wanted):
    block = next(one for one in wanted if one.name == "block layer1.0..layer1.1")
    # Two convolutions of 4 x 4 x 9 and two batch norms of 2 x 4, in float64.
    assert bytes_to_learn(block) == 4 * 8 * (2 * 144 + 2 * 8)
    narrow = next(one for one in wanted if one.name == "narrow layer1.0..layer1.0")
    # Half the inner features: of the convolutions, and of the first norm.
    assert bytes_to_learn(narrow) == 4 * 8 * (2 * 72 + 4 + 8)


def test_half_precision_learns_in_single(wanted):
    block = wanted[0]
    before = bytes_to_learn(block)
    block.original.to(torch.bfloat16)
    try:
        assert bytes_to_learn(block) == before / 2
    finally:
        block.original.double()


def test_portions_keep_the_order_and_the_bound(wanted):
    sizes = [bytes_to_learn(one) for one in wanted]
    bound = max(sizes) + min(sizes)
    portions = memory_batches(wanted, bound)
    assert [one for portion in portions for one in portion.members] == wanted
    assert all(portion.bytes == sum(map(bytes_to_learn, portion.members)) <= bound for portion in portions)
    assert 1 < len(portions) < len(wanted)
    # None could have taken the first of the next as well.
    for portion, after in pairwise(portions):
        assert portion.bytes + bytes_to_learn(after.members[0]) > bound


def test_what_is_larger_than_the_bound_learns_alone_and_what_fits_together(wanted):
    assert [len(one.members) for one in memory_batches(wanted, 1)] == [1] * len(wanted)
    assert len(memory_batches(wanted, 1e9)) == 1
    assert memory_batches([], 1e9) == []
