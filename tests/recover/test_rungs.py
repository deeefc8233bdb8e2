"""Students that pause: going on is the same as never having paused, and all see the same mini-batches."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from shoal.batches import Batch
from shoal.preserve import copied
from shoal.recover import DistillConfig, DistillData, trainable
from shoal.recover.rungs import RUNG_LR, PausedStudent, RungDistillation


def network(seed=0, width=6):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(width * 16, 5)
    ).eval()


def images(first=0, count=4):
    return [torch.randn(18, 1, 4, 4, generator=torch.Generator().manual_seed(first + index)) for index in range(count)]


def shuffled(epoch):
    """An epoch whose order is drawn from torch's random numbers, as a loader that shuffles draws it."""
    order = torch.randperm(4).tolist()
    return [images()[index] for index in order]


def paused(folder, student=None, *, total=8, rate=0.05, data=shuffled, **more):
    return PausedStudent(
        student if student is not None else network(1),
        network(0),
        DistillData(data),
        images(50, 2),
        DistillConfig(rate=rate, **more),
        folder,
        total,
    )


@pytest.fixture
def seen(monkeypatch):
    """The mini-batches that each run learned from."""
    runs = []
    step, prepare = RungDistillation.train_step, RungDistillation.prepare

    def begun(self):
        prepare(self)
        runs.append([])

    def taken(self):
        following = self.loader.next_batch

        def next_batch(*args):
            batch = following(*args)
            runs[-1].append(batch.args[0].clone())
            return batch

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.loader, "next_batch", next_batch)
            return step(self)

    monkeypatch.setattr(RungDistillation, "prepare", begun)
    monkeypatch.setattr(RungDistillation, "train_step", taken)
    return runs


def test_a_student_that_pauses_goes_on_as_if_it_had_not(tmp_path):
    straight, halting = paused(tmp_path / "a"), paused(tmp_path / "b")
    whole = straight.climb(8)
    parts = [halting.climb(step) for step in (2, 4, 8)]
    assert [part.steps for part in parts] == [2, 4, 8]
    assert parts[-1].divergence == whole.divergence
    one, other = straight.result(8).model.state_dict(), halting.result(8).model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole.divergence != whole.divergence_before
    assert {part.divergence_before for part in parts} == {whole.divergence_before}
    assert halting.climb(8).divergence == whole.divergence  # a rung that was finished is not learned again


def test_norms_are_set_once_from_no_more_samples_than_they_need_and_go_on_the_same(tmp_path, monkeypatch):
    measured = []
    original = trainable.set_statistics_

    def counted(model, batches):
        measured.append(sum(batch.size for batch in batches))
        return original(model, batches)

    monkeypatch.setattr(trainable, "set_statistics_", counted)
    batch = Batch((torch.randn(700, 1, 4, 4, generator=torch.Generator().manual_seed(3)),))
    data = DistillData(shuffled, norm_batches=[batch] * 3)
    straight, halting = (replace(paused(tmp_path / name), data=data) for name in "ab")
    whole = straight.climb(6)
    assert measured == [1024]
    parts = [halting.climb(step) for step in (2, 6)]
    assert measured == [1024, 1024, 0]
    assert parts[-1].divergence == whole.divergence
    one, other = straight.result(6).model.state_dict(), halting.result(6).model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_all_students_see_the_same_mini_batches(tmp_path, seen):
    first, second = paused(tmp_path / "a"), paused(tmp_path / "b", network(7, width=4))
    for student in (first, second):
        student.climb(3)
    for student in (second, first):  # whatever the order
        student.climb(7)
    early, late = seen[:2], seen[2:]
    for runs, steps in ((early, 3), (late, 4)):
        assert [len(run) for run in runs] == [steps, steps]
        assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_random_numbers_and_networks_stay_as_they_were(tmp_path):
    student = network(1)
    runner = paused(tmp_path, student)
    before, random = copy.deepcopy(student.state_dict()), torch.get_rng_state()
    runner.climb(2)
    runner.result(2)
    runner.timing()
    torch.testing.assert_close(student.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(random, torch.get_rng_state())


def test_what_is_judged_is_what_was_learned_not_what_it_began_with(tmp_path):
    """A perfect student that a high rate shakes up: its initial weights are nearer, and yet do not count."""
    student = paused(tmp_path, copied(network(0)), rate=0.5)
    result = student.climb(2)
    assert result.divergence_before < 1e-9
    assert result.divergence > 1e-4
    assert student.result(2).recovery.kept_step == 0  # but they are what comes out


def test_the_rate_is_the_same_for_all_where_none_is_given(tmp_path):
    assert paused(tmp_path / "a", rate=None).climb(1).rate == RUNG_LR["sgd"]
    assert paused(tmp_path / "b", rate=0.3).climb(1).rate == 0.3


def test_a_student_that_diverges_is_infinitely_far_away(tmp_path, monkeypatch):
    student = paused(tmp_path)
    student.climb(2)
    step = RungDistillation.train_step

    def diverges(self):
        size = step(self)
        self.loss = torch.tensor(math.nan)
        return size

    monkeypatch.setattr(RungDistillation, "train_step", diverges)
    result = student.climb(8)
    assert result.divergence == math.inf
    assert result.steps == 3  # there is no point in going on
    assert student.climb(8).divergence == math.inf


def test_weights_that_are_not_finite_are_noticed_too(tmp_path, monkeypatch):
    step = RungDistillation.train_step

    def ruins(self):
        size = step(self)
        with torch.no_grad():
            self.student[4].weight.fill_(math.nan)
        self.average.update(self.student)
        return size

    monkeypatch.setattr(RungDistillation, "train_step", ruins)
    assert paused(tmp_path).climb(1).divergence == math.inf


def test_timing_learns_and_keeps_nothing(tmp_path):
    timing = paused(tmp_path).timing()
    assert timing.student > 0
    assert timing.step > 0
    assert list(tmp_path.iterdir()) == []


def test_extra_data_goes_on_where_it_paused_too(tmp_path):
    data = DistillData(images(), unlabelled=[Batch((image,)) for image in images(80)])

    def student(name):
        return PausedStudent(network(1), network(0), data, images(50, 2), DistillConfig(), tmp_path / name, 4)

    straight, halting, without = student("a"), student("b"), paused(tmp_path / "c", total=4, data=images(), rate=None)
    assert [halting.climb(step) for step in (1, 3, 4)][-1].divergence == straight.climb(4).divergence
    assert straight.climb(4).divergence != without.climb(4).divergence
