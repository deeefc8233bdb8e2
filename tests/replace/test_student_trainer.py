import math
from itertools import pairwise

import pytest
import torch
from given import dissected, randn

import networks
from shoal.replace import build_segments, find_spans, students_of
from shoal.replace.student_trainer import IOPair, StudentTrainer, memory_batches, training_bytes


@pytest.fixture
def learner():
    anatomy = dissected(lambda: networks.PreactNet(4, 2), 1, 6, 6)
    line = build_segments(anatomy)
    return StudentTrainer(students_of(anatomy, line, find_spans(anatomy, line, 1), ["narrow"])[0])


def pair(learner, **more):
    x = randn(3, *learner.spec.span.in_shape)
    return IOPair((x,), {}, randn(3, *learner.spec.span.out_shape, seed=1), **more)


def test_the_loss_is_a_share_of_the_variance(learner):
    given = pair(learner)
    found = learner.module(given.args[0])
    expected = (found - given.output).square().mean() / given.output.var(correction=0)
    torch.testing.assert_close(learner.loss(given), expected)


def test_padding_does_not_count(learner):
    whole = pair(learner)
    counted = torch.tensor([True, False, True])
    masked = IOPair(whole.args, {}, whole.output.clone(), counted)
    masked.output[1] = 1e6
    kept = IOPair((whole.args[0][counted],), {}, whole.output[counted])
    torch.testing.assert_close(learner.loss(masked), learner.loss(kept))


def test_a_cache_is_not_handed_on_and_numbers_come_in_its_precision(learner):
    class Cache:
        def update(self): ...

        def get_seq_length(self): ...

    seen = {}

    def forward(x, *others, **named):
        seen.update(others=others, named=named)
        return x

    learner.module.forward = forward
    given = pair(learner)
    half, number = torch.ones(2, dtype=torch.bfloat16), torch.arange(2)
    more = {"cache": Cache(), "pair": (half, Cache()), "number": number, "flag": True, "words": {"a": half}}
    learner.loss(IOPair((*given.args, half, Cache()), more, given.output))
    assert seen["others"][0].dtype == torch.float64
    assert seen["others"][1] is None
    assert seen["named"]["cache"] is None
    assert seen["named"]["pair"][0].dtype == torch.float64
    assert seen["named"]["pair"][1] is None
    assert torch.equal(seen["named"]["number"], number)
    assert seen["named"]["flag"] is True
    assert torch.equal(seen["named"]["words"]["a"], half)


def test_what_comes_out_has_the_best_weights(learner):
    learner.record_evaluation(0.5)
    best = {name: one.clone() for name, one in learner.module.state_dict().items()}
    learner.step(pair(learner), 0.1)
    learner.record_evaluation(0.7)
    found = learner.result()
    assert (found.curve, found.error, found.diverged) == ((0.5, 0.7), 0.5, False)
    assert found.fitted.r2_held_out == 0.5
    torch.testing.assert_close(found.fitted.module.state_dict(), best, rtol=0, atol=0)


def test_a_loss_that_is_no_number_stops_it(learner):
    before = {name: one.clone() for name, one in learner.module.state_dict().items()}
    broken = pair(learner)
    broken.output.fill_(math.nan)
    learner.step(broken, 0.1)
    learner.step(pair(learner), 0.1)
    assert learner.diverged
    torch.testing.assert_close(dict(learner.module.state_dict()), before, rtol=0, atol=0)
    learner.record_evaluation(math.inf)
    assert learner.curve == []


@pytest.fixture(scope="module")
def wanted():
    anatomy = dissected(lambda: networks.CifarResNet(2, widths=(4, 8, 16)), 3, 8, 8)
    line = build_segments(anatomy)
    return students_of(anatomy, line, find_spans(anatomy, line, 2), ["block", "narrow"])


def test_a_student_holds_its_weights_four_times_while_it_learns(wanted):
    block = next(one for one in wanted if one.name == "block layer1.0..layer1.1")
    # Two convolutions of 4 x 4 x 9 and two batch norms of 2 x 4, in float64.
    assert training_bytes(block) == 4 * 8 * (2 * 144 + 2 * 8)
    narrow = next(one for one in wanted if one.name == "narrow layer1.0..layer1.0")
    # Half the inner features: of the convolutions, and of the first norm.
    assert training_bytes(narrow) == 4 * 8 * (2 * 72 + 4 + 8)


def test_half_precision_learns_in_single(wanted):
    block = wanted[0]
    before = training_bytes(block)
    block.original.to(torch.bfloat16)
    try:
        assert training_bytes(block) == before / 2
    finally:
        block.original.double()


def test_portions_keep_the_order_and_the_bound(wanted):
    sizes = [training_bytes(one) for one in wanted]
    bound = max(sizes) + min(sizes)
    portions = memory_batches(wanted, bound)
    assert [one for portion in portions for one in portion.members] == wanted
    assert all(portion.bytes == sum(map(training_bytes, portion.members)) <= bound for portion in portions)
    assert 1 < len(portions) < len(wanted)
    # None could have taken the first of the next as well.
    for portion, after in pairwise(portions):
        assert portion.bytes + training_bytes(after.members[0]) > bound


def test_what_is_larger_than_the_bound_learns_alone_and_what_fits_together(wanted):
    assert [len(one.members) for one in memory_batches(wanted, 1)] == [1] * len(wanted)
    assert len(memory_batches(wanted, 1e9)) == 1
    assert memory_batches([], 1e9) == []
