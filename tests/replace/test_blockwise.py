import gc
import math
import weakref

import pytest
import torch
from given import dissected, randn
from torch import nn

import language
import networks
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.errors import DataError, NonFiniteError
from shoal.plan import Replacement
from shoal.preserve import patched
from shoal.replace import StudentSpec, blockwise, build_segments, find_spans, students_of, train_students, two_blocks
from shoal.replace.students import student_of
from shoal.training import TrainingBudget

pytestmark = pytest.mark.heavy


def images(count=4, size=8, seed=0):
    return [Batch((randn(size, 3, 8, 8, seed=seed + number),)) for number in range(count)]


@pytest.fixture
def anatomy():
    return dissected(lambda: networks.CifarResNet(2, widths=(4, 8, 16)), 3, 8, 8)


def wanted(anatomy, *kinds, longest=2):
    line = build_segments(anatomy)
    return students_of(anatomy, line, find_spans(anatomy, line, longest), kinds)


def held_out_error(anatomy, one, batches):
    """1 - R2 of the span's output over the samples that are held out."""
    caught = {}
    first, last = (anatomy.model.get_submodule(one.span.paths[index]) for index in (0, -1))
    handles = [
        first.register_forward_pre_hook(lambda _, args: caught.__setitem__("x", args[0].clone())),
        last.register_forward_hook(lambda _, args, y: caught.__setitem__("y", y.clone())),
    ]
    total = count = 0
    with torch.no_grad():
        for batch in batches:
            anatomy.model(batch.args[0])
            error = (one.module(caught["x"]) - caught["y"]).square().mean() / caught["y"].var(correction=0)
            total, count = total + len(caught["y"]) * float(error), count + len(caught["y"])
    for handle in handles:
        handle.remove()
    return total / count


def named(one):
    return f"{one.kind} {one.span.name}"


def test_students_learn_side_by_side_and_say_how_well(anatomy):
    asked = wanted(anatomy, "block", "narrow")
    begun = {
        f"{one.kind} {one.span.name}": 1 - one.r2_held_out
        for one in train_students(anatomy, images(), asked, budget=TrainingBudget(steps=1)).fitted
    }
    trained = train_students(anatomy, images(), asked, budget=TrainingBudget(steps=40))
    assert [named(one) for one in trained.fitted] == [one.name for one in asked]
    for one in trained.fitted:
        assert 1 - one.r2_held_out < 0.9 * (1 - begun[named(one)])
        # Four mini-batches of 8: a fifth of 32 samples are the last 6 of the last.
        held = [Batch((images()[-1].args[0][2:],))]
        assert 1 - one.r2_held_out == pytest.approx(held_out_error(anatomy, one, held), rel=1e-6)
        assert not one.module.training
        assert one.ridge == 0.0
    assert f"{len(asked)} students learned side by side for 40 steps" in trained.notes[0]


def test_the_original_is_left_as_it_was(anatomy):
    before = {name: one.clone() for name, one in anatomy.model.state_dict().items()}
    draws = torch.get_rng_state()
    train_students(anatomy, images(), wanted(anatomy, "block"), budget=TrainingBudget(steps=3))
    assert all(torch.equal(before[name], one) for name, one in anatomy.model.state_dict().items())
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in anatomy.model.modules())
    assert all(one.grad is None for one in anatomy.model.parameters())
    assert torch.equal(draws, torch.get_rng_state())


def test_so_many_steps_give_the_same_students_every_time(anatomy):
    asked = wanted(anatomy, "block")
    one, other = (train_students(anatomy, images(), asked, budget=TrainingBudget(steps=5)).fitted for _ in range(2))
    for left, right in zip(one, other, strict=True):
        torch.testing.assert_close(left.module.state_dict(), right.module.state_dict(), rtol=0, atol=0)


def test_a_time_is_kept(anatomy):
    trained = train_students(anatomy, images(), wanted(anatomy, "block"), budget=TrainingBudget(seconds=0.2))
    assert trained.fitted
    assert train_students(anatomy, images(), [], budget=TrainingBudget(seconds=9e9)).fitted == []


def test_two_blocks_are_tried_where_one_flattens_out_too_high(monkeypatch):
    anatomy = dissected(lambda: networks.CifarResNet(4, widths=(4, 8, 16)), 3, 8, 8)
    line = build_segments(anatomy)
    asked = [one for one in wanted(anatomy, "block", longest=4) if one.span.stop - one.span.start == 4][:2]
    doubles = {one.span: two_blocks(anatomy, one.span, line) for one in asked}

    def kinds(high, wins, steps=20):
        monkeypatch.setattr(blockwise, "_HIGH", high)
        monkeypatch.setattr(blockwise, "_WINS", wins)
        trained = train_students(anatomy, images(), asked, doubles=doubles, budget=TrainingBudget(steps=steps))
        return sorted(one.kind for one in trained.fitted), trained.notes

    found, notes = kinds(high=0.0, wins=100.0, steps=60)
    assert found == ["block", "block", "block2", "block2"]
    assert "one block flattened out above 0 % of the variance for 2 spans" in notes[1]
    assert "clearly better for 2" in notes[1]
    assert "for 42 steps" in notes[0]  # the rest of the budget is for two blocks
    found, notes = kinds(high=0.0, wins=0.0)  # two never win enough
    assert found == ["block", "block"]
    assert "clearly better for 0" in notes[1]
    assert kinds(high=10.0, wins=1.0)[0] == ["block", "block"]  # nothing is that bad
    assert len(kinds(high=10.0, wins=1.0)[1]) == 1


def test_a_student_that_diverges_is_stopped_and_keeps_its_last_good_weights(anatomy, monkeypatch):
    asked = wanted(anatomy, "narrow", longest=1)[:1]
    monkeypatch.setattr(blockwise, "_LR", 1e12)
    trained = train_students(anatomy, images(), asked, budget=TrainingBudget(steps=30))
    assert all(math.isfinite(one.r2_held_out) for one in trained.fitted)
    assert all(bool(torch.isfinite(p).all()) for one in trained.fitted for p in one.module.parameters())
    fresh = student_of(asked[0].stand_in, anatomy.model).state_dict()
    torch.testing.assert_close(trained.fitted[0].module.state_dict(), fresh)


def test_half_precision_learns_in_single_and_stays_half():
    torch.manual_seed(0)
    model = networks.randomised(networks.CifarResNet(2, widths=(4, 8, 16))).to(torch.bfloat16)
    data = [Batch((one.args[0].to(torch.bfloat16),)) for one in images()]
    found = analyze(model, data[0].take(2))
    for one in train_students(found, data, wanted(found, "block"), budget=TrainingBudget(steps=3)).fitted:
        assert {p.dtype for p in one.module.parameters()} == {torch.bfloat16}


class Masked(nn.Module):
    """Blocks that are given a mask beside the stream."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x, mask, *, scale=1.0):
            return x + scale * mask * self.fc2(torch.relu(self.fc1(x)))

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))

    def forward(self, x):
        mask = (x > 0).to(x.dtype)
        for block in self.blocks:
            x = block(x, mask, scale=0.5)
        return x


def test_a_student_is_given_what_the_blocks_were_given():
    anatomy = dissected(Masked, 4)
    data = [Batch((randn(8, 4, seed=number),)) for number in range(3)]
    fitted = train_students(anatomy, data, wanted(anatomy, "block", "narrow"), budget=TrainingBudget(steps=30)).fitted
    assert fitted
    assert min(one.r2_held_out for one in fitted) > 0.5


def test_too_little_data_and_nan_are_refused(anatomy):
    with pytest.raises(DataError, match="1 calibration sample, expected at least 2"):
        train_students(anatomy, images(1, 1), wanted(anatomy, "block"), budget=TrainingBudget(steps=2))
    poisoned = [Batch((torch.full((4, 3, 8, 8), float("nan"), dtype=torch.float64),))]
    with pytest.raises(NonFiniteError, match="NaN or Inf in the activations"):
        train_students(anatomy, poisoned, wanted(anatomy, "block"), budget=TrainingBudget(steps=2))


def test_one_mini_batch_is_parted(anatomy):
    asked = wanted(anatomy, "block")
    assert len(train_students(anatomy, images(1, 2), asked, budget=TrainingBudget(steps=2)).fitted) == len(asked)


def test_what_no_student_can_be_made_of_is_no_student(anatomy):
    [one, *_] = wanted(anatomy, "block")
    stand_in = Replacement(kind="block", layout="channels_first", in_channels=4, out_channels=4, copies=("gone",))
    with pytest.raises(Exception, match="cannot be made of this network"):
        train_students(
            anatomy, images(), [StudentSpec(one.span, "block", stand_in, anatomy.model)], budget=TrainingBudget(steps=1)
        )


def in_portions(anatomy, monkeypatch, asked, **budget):
    """Students that learn one at a time, and how many of them there ever were at the same time."""
    alive, most = weakref.WeakSet(), []

    class Counted(blockwise.StudentTrainer):
        def __init__(self, one):
            super().__init__(one)
            gc.collect()
            alive.add(self)
            most.append(len(alive))

    monkeypatch.setattr(blockwise, "StudentTrainer", Counted)
    return train_students(anatomy, images(), asked, memory=1, **budget), max(most)


@pytest.mark.slow
def test_students_that_do_not_fit_into_memory_learn_in_portions_of_the_budget(anatomy, monkeypatch):
    asked = wanted(anatomy, "block", "narrow")
    trained, most = in_portions(anatomy, monkeypatch, asked, budget=TrainingBudget(steps=4 * len(asked)))
    assert most == 1
    assert [named(one) for one in trained.fitted] == [one.name for one in asked]
    said = f"{len(asked)} students learned side by side in {len(asked)} portions, one after the other, since memory for"
    assert said in trained.notes[0]
    assert "for 4 steps each in" in trained.notes[0]
    # The share of each is a budget of its own: the same as alone with so many steps.
    for one, given in ((trained.fitted[0], asked[0]), (trained.fitted[-1], asked[-1])):
        alone = train_students(anatomy, images(), [given], budget=TrainingBudget(steps=4)).fitted[0]
        torch.testing.assert_close(one.module.state_dict(), alone.module.state_dict(), rtol=0, atol=0)


@pytest.mark.slow
def test_portions_share_a_time(anatomy, monkeypatch):
    ticks = []
    clock = iter(range(10**6))
    monkeypatch.setattr(blockwise.time, "perf_counter", lambda: float(next(clock)))
    asked = wanted(anatomy, "block")
    tick = lambda done, of: ticks.append(done)
    trained, most = in_portions(anatomy, monkeypatch, asked, budget=TrainingBudget(seconds=200.0), on_progress=tick)
    assert most == 1
    assert len(trained.fitted) == len(asked)
    assert ticks == sorted(ticks)
    assert ticks[-1] == 100
    # The clock ticks once a step; each portion takes no more than its part, and one step.
    assert len(ticks) <= 200 + len(asked)


def decoder(**more):
    """A Llama, and mini-batches for it."""
    model = language.llama()
    data = [Batch(kwargs={"input_ids": language.tokens(8, 12, seed=seed), **more}) for seed in range(3)]
    return analyze(model, data[0].take(2)), data


@pytest.mark.parametrize("asks", [{}, {"use_cache": True}])
def test_students_of_a_decoder_do_not_learn_through_the_teachers_cache(asks):
    anatomy, data = decoder(**asks)
    config = anatomy.model.config
    assert config.use_cache
    asked = [one for one in wanted(anatomy, "block") if one.span.start < 2]
    assert [one.name for one in asked] == [
        "block model.layers.0..model.layers.1",
        "block model.layers.1..model.layers.2",
    ]
    trained = train_students(anatomy, data, asked, budget=TrainingBudget(steps=6))
    assert config.use_cache
    before = dict(anatomy.model.named_parameters())
    for one, given in zip(trained.fitted, asked, strict=True):
        for name in ("q_proj", "k_proj", "v_proj"):
            path = f"{given.stand_in.copies[0]}.self_attn.{name}.weight"
            assert not torch.equal(one.module[0].self_attn.get_submodule(name).weight, before[path])
        held = data[-1].rest(3)  # a fifth of 24 samples
        assert 1 - one.r2_held_out == pytest.approx(error_in_place(anatomy.model, one, held), rel=1e-4)


def error_in_place(model, one, batch):
    """1 - R2 of the span's output with the student in the place of the span, in a network that keeps its cache."""
    caught = []
    first, last = (model.get_submodule(one.span.paths[index]) for index in (0, -1))
    handle = last.register_forward_hook(lambda _, args, y: caught.append(y.clone()))
    with torch.no_grad():
        model(**batch.kwargs)
        with patched({first: one.module.forward, last: lambda x, *_, **__: x}):
            model(**batch.kwargs)
    handle.remove()
    whole, found = caught
    return float((found - whole).square().mean() / whole.var(correction=0))


def test_padded_positions_do_not_count():
    model = language.llama()
    mask = (torch.arange(12) < torch.tensor([[12], [7], [9], [5], [12], [8], [6], [7]])).long()

    def students(filler):
        data = [
            Batch(kwargs={"input_ids": tokens.where(mask != 0, filler), "attention_mask": mask})
            for tokens in (language.tokens(8, 12, seed=seed) for seed in range(3))
        ]
        anatomy = analyze(model, data[0].take(2))
        return train_students(anatomy, data, wanted(anatomy, "block")[:1], budget=TrainingBudget(steps=4)).fitted[0]

    # What stands in the padding is seen by no position before it.
    one, other = students(5), students(77)
    assert one.r2_held_out == pytest.approx(other.r2_held_out, abs=1e-7)
    torch.testing.assert_close(one.module.state_dict(), other.module.state_dict(), rtol=0, atol=1e-7)
