"""The whole of a distillation: it wins, it resumes bitwise, it stops in time, and says what does not fit."""

import copy
import errno
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from shoal.errors import DataError, FolderError, SurgeryError, UsageError, WeightsError
from shoal.files import tensors as tensor_writing
from shoal.recover import DistillConfig, DistillData, distill
from shoal.recover.distill import CHECKPOINT, Distillation
from shoal.recover.evaluation import TeacherKL
from shoal.recover.lr_search import LrSearchResult
from shoal.training import loop
from shoal.training.optim import ClippedOptimizer
from teaching import TokenNet, images, same, student, teacher, tokens, training, validation

pytestmark = pytest.mark.heavy

HERE = Path(__file__).parent
QUICK = DistillConfig(rate=0.1, looks=4, clip=0.05)


def run(budget=12, **more):
    options = {"validation": validation(), "config": QUICK, **more}
    pair = options.pop("student", None) or student(), options.pop("teacher", None) or teacher()
    data = DistillData(options.pop("training", None) or training(), options.pop("unlabelled", None))
    return distill(*pair, data, budget=budget, **options)


def test_nothing_is_done_where_nothing_was_lost():
    model = teacher()
    found = run(12, student=copy.deepcopy(model), teacher=model)
    assert (found.recovery.stopped, found.recovery.steps) == ("nothing", 0)
    assert "there was nothing to recover" in found.recovery.summary
    assert same(found.model, model)


def test_it_wins_back_and_leaves_both_networks_as_they_were():
    own, model = student(), teacher()
    before, draws = copy.deepcopy((own, model)), torch.get_rng_state()
    found = run(60, student=own, teacher=model)
    recovery = found.recovery
    assert recovery.divergence_after < 0.7 * recovery.divergence_before
    assert (recovery.steps, recovery.samples, recovery.stopped, recovery.features) == (60, 960, "budget", 2)
    assert recovery.features_weight == 64.0
    assert recovery.kept_step > 0
    assert "60 steps" in recovery.summary
    assert same(before[0], own)
    assert same(before[1], model)
    assert torch.equal(draws, torch.get_rng_state())
    assert not found.model.training
    assert not any(one._forward_hooks for one in found.model.modules())
    assert not same(found.model, own)


def test_the_same_seed_gives_the_same_network_and_another_does_not():
    one, other = run(8), run(8)
    assert same(one.model, other.model)
    assert not same(one.model, run(8, config=DistillConfig(rate=0.1, looks=4, clip=0.05, seed=1)).model)


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_an_interrupted_run_goes_on_bitwise(tmp_path, monkeypatch, stop):
    whole = run(9, folder=_made(tmp_path / "whole"), unlabelled=training(size=5))
    step = Distillation.train_step

    def interrupted(self):
        if self.state.step == stop:
            raise KeyboardInterrupt
        return step(self)

    folder = _made(tmp_path / "parts")
    monkeypatch.setattr(Distillation, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(9, folder=folder, unlabelled=training(size=5))
    monkeypatch.setattr(Distillation, "train_step", step)
    found = run(9, folder=folder, unlabelled=training(size=5))
    assert same(whole.model, found.model)
    assert found.recovery.divergence_after == whole.recovery.divergence_after
    steps = [[line["step"] for line in _lines(one)] for one in (tmp_path / "whole", folder)]
    assert steps[0] == steps[1]
    curves = [
        [(one.step, one.rate, one.loss, one.divergence) for one in found.recovery.curve] for found in (whole, found)
    ]
    assert curves[0] == curves[1]
    assert [one[0] for one in curves[0]] == steps[0]


# Forks of one process, so that torch is imported once; nothing may compute a gradient before the last fork.
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from teaching import student, teacher, training, validation
from shoal.recover import DistillConfig, DistillData, distill
from shoal.recover.distill import CHECKPOINT, Distillation

step = Distillation.train_step

def attempt(folder, killed):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    def maybe_the_last(self):
        if killed and (folder / CHECKPOINT).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self)
    Distillation.train_step = maybe_the_last
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    settings = DistillConfig(rate=0.1, looks=12, clip=0.05)
    known = {"validation": validation(), "budget": 12, "config": settings, "folder": folder}
    found = distill(student(), teacher(), training(), **known)
    torch.save(found.model.state_dict(), folder / "out.pt")
    os._exit(0)

whole, parts = Path(sys.argv[1]), Path(sys.argv[2])
assert attempt(whole, killed=False) == 0
assert attempt(parts, killed=True) == -signal.SIGKILL
assert not (parts / "out.pt").exists()
assert attempt(parts, killed=False) == 0
"""


@pytest.mark.slow
def test_a_killed_process_goes_on_bitwise(tmp_path):
    places = [str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "whole"), str(tmp_path / "parts")]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    one, other = (torch.load(tmp_path / name / "out.pt", weights_only=True) for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_finished_run_is_not_repeated(tmp_path, monkeypatch):
    first = run(6, folder=tmp_path)
    monkeypatch.setattr(Distillation, "train_step", lambda self: pytest.fail("a step"))
    again = run(6, folder=tmp_path)
    assert same(first.model, again.model)
    assert again.recovery.resumed


def test_the_checkpoint_is_safetensors_with_the_optimizer_in_it(tmp_path):
    run(6, folder=tmp_path)
    names = set(load_file(tmp_path / CHECKPOINT))
    assert {"student.head.weight", "best.head.weight", "optimizer.momentum_buffer.head.weight"} <= names
    assert not [one.name for one in tmp_path.iterdir() if one.suffix in (".pt", ".pkl", ".bin")]


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    save, saved = tensor_writing.save_file, []

    def full(*args, **more):
        if len(saved) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        saved.append(save(*args, **more))

    monkeypatch.setattr(tensor_writing, "save_file", full)
    with pytest.raises(FolderError, match="No space left"):
        run(12, folder=tmp_path)
    monkeypatch.setattr(tensor_writing, "save_file", save)
    found = run(12, folder=tmp_path)
    assert found.recovery.resumed
    assert same(found.model, run(12).model)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    run(4, folder=tmp_path)
    with pytest.raises(UsageError, match="other settings: budget was '4 steps'"):
        run(5, folder=tmp_path)
    with pytest.raises(UsageError, match="seed was 0"):
        run(4, folder=tmp_path, config=DistillConfig(rate=0.1, looks=4, clip=0.05, seed=3))


def test_a_checkpoint_of_other_networks_or_samples_is_refused(tmp_path):
    run(4, folder=tmp_path)
    own, model = student(), teacher()
    for one in (own, model):
        with torch.no_grad():
            one.head.bias.add_(0.1)
    with pytest.raises(WeightsError, match="began with another student"):
        run(4, folder=tmp_path, student=own)
    with pytest.raises(WeightsError, match="began with another teacher"):
        run(4, folder=tmp_path, teacher=model)
    with pytest.raises(WeightsError, match="began with other validation samples"):
        run(4, folder=tmp_path, validation=validation()[::-1])
    assert run(4, folder=tmp_path).recovery.resumed


def test_the_folder_is_made(tmp_path):
    run(2, folder=tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / CHECKPOINT).exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="cannot use"):
        run(2, folder=tmp_path / "file")


def test_validation_that_shuffles_is_the_same_for_a_run_that_goes_on(tmp_path):
    def shuffling():
        return torch.utils.data.DataLoader(images(32, 9001), batch_size=16, shuffle=True)

    given = {"student": student(), "teacher": teacher(), "folder": tmp_path}
    torch.manual_seed(1)
    first = run(4, validation=shuffling(), **given)
    torch.manual_seed(2)
    again = run(4, validation=shuffling(), **given)
    assert again.recovery.resumed
    assert same(first.model, again.model)


def test_a_student_that_diverges_is_stopped_and_comes_out_as_it_was():
    own = student()
    wild = DistillConfig(rate=1e6, looks=5, clip=0.0, norm_batch=10**6, warm_up=0.0)
    found = run(40, student=own, config=wild)
    assert found.recovery.stopped == "diverged"
    assert found.recovery.steps < 40
    assert found.recovery.divergence_after == found.recovery.divergence_before
    assert "diverged and was stopped, the last good weights are kept" in found.recovery.summary
    assert same(found.model, own)


def test_it_stops_early_where_nothing_more_is_won():
    still = DistillConfig(rate=1e-12, looks=20, patience=3)
    found = run(40, config=still)
    assert found.recovery.stopped == "early"
    assert found.recovery.steps < 40


def test_a_run_that_is_shaken_up_at_first_and_then_improves_is_not_stopped(monkeypatch):
    said = [0.5, *(5.0 - number / 4 for number in range(11)), 0.4, 0.6, 0.6, 0.6, 0.6]
    monkeypatch.setattr(TeacherKL, "evaluate", lambda self, network: said.pop(0))
    found = run(12, config=DistillConfig(rate=0.01, looks=12, patience=3)).recovery
    assert (found.stopped, found.steps) == ("budget", 12)
    assert found.kept == "averaged weights"


def test_weights_that_only_look_bad_are_found_at_the_end(monkeypatch):
    said = [0.5, 0.9, 0.8, 0.4, 0.45]  # before; averaged and last weights; both with norms of their own
    monkeypatch.setattr(TeacherKL, "evaluate", lambda self, network: said.pop(0))
    found = run(12, config=DistillConfig(rate=0.01, looks=1)).recovery
    assert found.kept == "averaged weights, batch norms recalibrated"
    assert (found.divergence_after, found.kept_step) == (0.4, 12)


def test_the_rate_rises_from_zero_however_long_its_test_took(monkeypatch):
    now, rates = [0.0], []

    def slow(self, step_seconds):
        now[0] += 5
        return LrSearchResult(0.1, {})

    def tick():
        now[0] += 0.01
        return now[0]

    for module in (sys.modules[Distillation.__module__], loop):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=tick))
    monkeypatch.setattr(Distillation, "find_lr", slow)
    monkeypatch.setattr(
        Distillation, "new_optimizer", lambda self, model: Noted(rates, model, self.optimizer_name, 0.0, 0.05)
    )
    run("10s", config=DistillConfig(looks=4, patience=20, warm_up=0.2))
    rates = [one for one in rates if one]
    highest = rates.index(max(rates))
    assert rates[0] < 0.01
    assert max(rates) > 0.099
    assert 0.15 < highest / len(rates) < 0.25
    assert rates[-1] < 0.001


class Noted(ClippedOptimizer):
    """Keeps the rate of each step."""

    def __init__(self, rates, *given):
        super().__init__(*given)
        self.rates = rates

    def step(self, rate):
        self.rates.append(rate)
        super().step(rate)


def test_a_time_is_kept():
    started = time.monotonic()
    found = run("2s", config=DistillConfig())
    assert time.monotonic() - started < 20
    assert found.recovery.steps >= 1
    assert found.recovery.budget == "2 seconds"


def test_a_budget_too_short_for_one_step_says_what_a_step_takes():
    with pytest.raises(UsageError, match=r"too short for one step: a step takes .* seconds here.*\n.*Give at least"):
        run("0.001s")
    with pytest.raises(UsageError, match="budget of the distillation is none"):
        run("none")


def test_the_rate_is_found_where_none_is_given():
    found = run(300, config=DistillConfig(looks=2, patience=1)).recovery
    assert found.rate in [float(name) for name in found.rates_tried]
    assert len(found.rates_tried) > 4


def test_what_does_not_fit_is_refused_before_anything_is_done(tmp_path):
    other = teacher()
    other.head = nn.Linear(4, 7)
    with pytest.raises(DataError, match="the teacher has 7 outputs, the student 10"):
        run(teacher=other, folder=tmp_path)
    with pytest.raises(DataError, match=r"unlabelled data: samples of shape \(3, 8, 8\)"):
        run(unlabelled=[images(4, shape=(3, 8, 8))], folder=tmp_path)
    with pytest.raises(DataError, match="validation data is empty"):
        run(validation=[], folder=tmp_path)
    with pytest.raises(DataError, match="no labels"):
        run(config=DistillConfig(rate=0.1, labels=1.0), folder=tmp_path)
    with pytest.raises(DataError, match="no labels"):
        run(config=DistillConfig(rate=0.1, labels=1.0), folder=tmp_path, unlabelled=training(size=5))
    batches = validation()
    with pytest.raises(UsageError, match="the validation data is the very training data"):
        run(training=batches, validation=batches)
    with pytest.raises(SurgeryError, match="requires_grad_"):
        run(student=student().requires_grad_(False))
    assert [one.name for one in tmp_path.iterdir() if one.name == CHECKPOINT] == []


def test_tokens_masks_and_answers_in_a_dict():
    torch.manual_seed(0)
    model = TokenNet().eval()
    own = copy.deepcopy(model)
    own.layers[1] = nn.Identity()
    found = run(
        40, student=own, teacher=model, training=lambda epoch: [tokens(10 * epoch + n) for n in range(3)],
        validation=[tokens(999, 16)], config=DistillConfig(rate=0.01, looks=4),
    )  # fmt: skip
    assert found.recovery.optimizer == "adamw"
    assert found.recovery.divergence_after < found.recovery.divergence_before


def test_mini_batches_of_one_sample():
    found = run(6, training=lambda epoch: [images(1, 10 * epoch + n) for n in range(3)])
    assert math.isfinite(found.recovery.divergence_after)


def test_a_processor_without_bfloat16_is_warned_of_first(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False}, raising=False)
    monkeypatch.setattr(Distillation, "distill", lambda self: None)
    with pytest.warns(UserWarning, match="no instructions for bfloat16"):
        run("1m", config=DistillConfig(precision="bf16"))


def test_bf16():
    found = run(6, config=DistillConfig(rate=0.05, looks=2, precision="bf16"))
    assert found.recovery.steps == 6
    assert all(one.dtype == torch.float32 for one in found.model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_student_in_half_precision_learns_and_stays_in_it(dtype):
    def half(loader):
        return [one.to(dtype) for one in loader]

    own = student().to(dtype)
    found = run(
        40, student=own, teacher=teacher().to(dtype), training=lambda epoch: half(training()(epoch)),
        validation=half(validation()), config=DistillConfig(rate=0.003, looks=4, clip=0.05),
    )  # fmt: skip
    whole = run(40, config=DistillConfig(rate=0.003, looks=4, clip=0.05))
    gain, wanted = (one.recovery.divergence_before - one.recovery.divergence_after for one in (found, whole))
    assert gain > 0.9 * wanted > 0
    assert {name: one.dtype for name, one in found.model.state_dict().items()} == {
        name: one.dtype for name, one in own.state_dict().items()
    }
    assert found.model(images(2).to(dtype)).dtype == dtype


def test_what_is_rounded_on_the_way_back_cannot_make_it_worse(monkeypatch):
    def spoiled(model, form):
        nn.init.zeros_(model.head.weight)
        return model.to(torch.bfloat16)

    def half(loader):
        return [one.bfloat16() for one in loader]

    monkeypatch.setattr(sys.modules[Distillation.__module__], "from_trainable_", spoiled)
    own = student().bfloat16()
    found = run(
        12, student=own, teacher=teacher().bfloat16(), training=lambda epoch: half(training()(epoch)),
        validation=half(validation()),
    )  # fmt: skip
    assert same(found.model, own)
    assert found.recovery.kept == "the weights it began with"
    assert (found.recovery.kept_step, found.recovery.divergence_after) == (0, found.recovery.divergence_before)


class Causal(nn.Module):
    """A mask of minus infinities in a buffer, and a state beside the tensors."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.register_buffer("mask", torch.full((10, 10), -torch.inf).triu(1))

    def forward(self, x):
        return self.model(x) + 0 * self.mask.exp()[0]

    def get_extra_state(self):
        return {"version": "2"}

    def set_extra_state(self, state):
        pass


def test_a_mask_of_minus_infinities_and_a_state_that_is_no_tensor(tmp_path):
    found = run(20, student=Causal(student()), teacher=Causal(teacher()), folder=tmp_path)
    assert found.recovery.stopped == "budget"
    assert found.recovery.divergence_after < found.recovery.divergence_before
    assert run(20, student=Causal(student()), teacher=Causal(teacher()), folder=tmp_path).recovery.resumed


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_gradients_may_be_off_where_it_is_called(off):
    with off():
        found = run(6)
    assert same(found.model, run(6).model)


def test_a_look_never_says_a_loss_that_nobody_noted(tmp_path, monkeypatch):
    begin = Distillation.prepare_student

    def seldom(self, given):
        self.record_every = 10
        begin(self, given)

    monkeypatch.setattr(Distillation, "prepare_student", seldom)
    run(12, folder=tmp_path)
    assert [line["loss"] > 0 for line in _lines(tmp_path)[1:]] == [True] * 4


def test_the_record_holds_every_look_without_a_folder_too():
    recovery = run(12).recovery
    first, *later = recovery.curve
    assert [one.step for one in recovery.curve] == [0, 3, 6, 9, 12]
    assert (first.divergence, first.loss, first.rate) == (recovery.divergence_before, None, recovery.rate)
    assert all(one.loss > 0 and one.divergence > 0 for one in later)
    assert [one.seconds for one in recovery.curve] == sorted(one.seconds for one in recovery.curve)


def test_every_look_is_at_the_averaged_weights_the_last_one_too(monkeypatch):
    judge, judged = Distillation.evaluate_weights, []

    def noted(self, network, name):
        judged.append((name, judge(self, network, name)))
        return judged[-1][1]

    monkeypatch.setattr(Distillation, "evaluate_weights", noted)
    recovery = run(12).recovery
    assert [name for name, _ in judged[-4:-2]] == ["averaged weights", "the last step's weights"]
    assert judged[-3][1] != judged[-4][1]
    assert [one.divergence for one in recovery.curve[1:]] == [d for name, d in judged if name == "averaged weights"]


def test_a_look_that_was_not_taken_has_no_divergence():
    wild = DistillConfig(rate=1e6, looks=5, clip=0.0, norm_batch=10**6, warm_up=0.0)
    recovery = run(40, config=wild).recovery
    assert recovery.stopped == "diverged"
    assert recovery.curve[-1].divergence is None


def test_progress_is_told():
    told = []
    run(6, callbacks=lambda stage, done, total: told.append((stage, done, total)))
    assert told[-1] == ("recovering (steps)", 6, 6)


def _made(folder):
    folder.mkdir(exist_ok=True)
    return folder


def _lines(folder):
    return [json.loads(line) for line in (folder / "recovery.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("channels_last", "expected"), [(None, torch.channels_last), (True, torch.channels_last), (False, None)]
)
def test_it_learns_in_the_faster_layout_and_comes_out_in_its_own(channels_last, expected, monkeypatch):
    formats = []
    init = Distillation.__init__

    def spy(self, *args):
        init(self, *args)
        formats.append(self.engine.format)

    monkeypatch.setattr(Distillation, "__init__", spy)
    result = run(2, config=replace(QUICK, channels_last=channels_last))
    assert formats == [expected]
    weights = [weight for weight in result.model.state_dict().values() if weight.dim() == 4]
    assert weights
    assert all(weight.is_contiguous() for weight in weights)


def test_a_student_with_the_channels_last_keeps_them():
    own = student().to(memory_format=torch.channels_last)
    result = run(2, student=own)
    for name, weight in own.state_dict().items():
        assert result.model.state_dict()[name].stride() == weight.stride()
