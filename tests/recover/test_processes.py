"""Several processes learn together as one does; one that is lost, or asked to end, takes nothing with it."""

import os
import signal
import textwrap
import time

import pytest
import torch
from safetensors.torch import load_file

import launching
from launching import outputs
from learners import Learner, config, data, validation
from shoal.errors import Terminated
from shoal.files.tensors import read_tensors
from shoal.recover import DistillConfig, DistillData
from shoal.recover.distill import CHECKPOINT, METRICS, distill
from shoal.training.engine import Engine

COMMON = """
import os, signal, sys
from learners import Learner, config, data, validation
from shoal.recover.distill import distill
"""
SAVE = """
result = distill(Learner(0), Learner(1), data, validation=validation, budget=8, config=config, folder=sys.argv[1])
if os.environ.get("RANK", "0") == "0":
    from safetensors.torch import save_file
    save_file(result.model.state_dict(), sys.argv[2])
    print(result.recovery.processes, result.recovery.samples, list(result.warnings))
"""


def start(code, count, *arguments):
    """The code, with what it needs, in so many processes."""
    return launching.start(COMMON + textwrap.dedent(code), count, *arguments)


@pytest.fixture(scope="module")
def alone():
    """What one process learns."""
    return distill(Learner(0), Learner(1), data, validation=validation, budget=8, config=config)


@pytest.mark.slow
@pytest.mark.several
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_learn_what_one_does(tmp_path, alone, count):
    processes = start(SAVE, count, tmp_path / "run", tmp_path / "weights")
    printed = outputs(processes)
    assert [process.returncode for process in processes] == [0] * count, printed
    learned = load_file(tmp_path / "weights")
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(learned[name], value, rtol=0, atol=2e-6)
    assert not torch.equal(learned["inner.weight"], Learner(0).inner.weight)
    assert printed[0][0].split()[:2] == [str(count), str(alone.recovery.samples)], "every sample counted once"
    assert len((tmp_path / "run" / METRICS).read_text().splitlines()) == 3, "one line an evaluation, from the first"


@pytest.mark.slow
@pytest.mark.several
def test_a_process_that_dies_ends_the_others_within_a_minute_with_its_number(tmp_path):
    dying = """
    def images_of(epoch):
        for number, batch in enumerate(data):
            if epoch == 2 and number == 1 and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch
    distill(Learner(0), Learner(1), images_of, validation=validation, budget=400, config=config, folder=sys.argv[1])
    """
    processes = start(dying, 2, tmp_path)
    processes[1].wait(timeout=300)  # however long both take to start
    began = time.monotonic()
    printed = outputs(processes)
    assert time.monotonic() - began < 60
    assert processes[1].returncode == -signal.SIGKILL
    assert processes[0].returncode == 1
    assert "process 1 of 2 ended, and the others cannot go on alone" in printed[0][1]


@pytest.mark.slow
@pytest.mark.several
def test_sigterm_to_one_process_saves_and_another_number_goes_on(tmp_path, alone):
    asked = """
    def images_of(epoch):
        for number, batch in enumerate(data):
            if epoch == 1 and number == 2 and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch
    """
    processes = start(
        textwrap.dedent(asked) + SAVE.replace("data,", "images_of,"), 2, tmp_path / "run", tmp_path / "no"
    )
    printed = outputs(processes)
    assert all("Terminated" in error for _, error in printed), printed
    _, header = read_tensors(tmp_path / "run" / CHECKPOINT, ValueError, "", "")
    assert '"processes": 2' in str(header)
    result = distill(
        Learner(0), Learner(1), data, validation=validation, budget=8, config=config, folder=tmp_path / "run"
    )
    assert result.recovery.resumed
    assert any("begun by 2 and continued by 1 processes" in warning for warning in result.warnings)
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], value, rtol=0, atol=2e-6)


def test_sigterm_saves_a_checkpoint_from_which_the_very_same_student_comes(tmp_path, alone):
    def images_of(epoch):
        for number, batch in enumerate(data):
            if epoch == 2 and number == 0 and not (tmp_path / CHECKPOINT).with_suffix(".asked").exists():
                (tmp_path / CHECKPOINT).with_suffix(".asked").touch()
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    before = signal.getsignal(signal.SIGTERM)
    training = DistillData(images_of)
    with pytest.raises(Terminated):
        distill(Learner(0), Learner(1), training, validation=validation, budget=8, config=config, folder=tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / CHECKPOINT).exists()
    result = distill(Learner(0), Learner(1), training, validation=validation, budget=8, config=config, folder=tmp_path)
    assert result.recovery.resumed
    for name, value in alone.model.state_dict().items():
        assert torch.equal(result.model.state_dict()[name], value)


@pytest.mark.parametrize("parts", [2, 3, 7, 50])
def test_parts_of_a_mini_batch_make_the_same_step(alone, parts):
    settings = DistillConfig(rate=0.05, features=0.0, labels=0.5, looks=2, accumulate=parts)
    result = distill(Learner(0), Learner(1), data, validation=validation, budget=8, config=settings)
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], value, rtol=0, atol=2e-6)
    assert result.recovery.samples == alone.recovery.samples


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_every_sample_is_in_one_share_of_one_process(processes, size):
    from shoal.batches import Batch

    engine = Engine("cpu", "fp32")
    engine.processes = processes
    batch, seen, total = Batch((torch.arange(size).float(),)), [], 0.0
    for engine.rank in range(processes):
        for part, share in engine.shares(batch, 2):
            total += share
            seen += part.args[0].tolist() if share else []
    assert sorted(seen) == list(range(size))
    assert total == pytest.approx(1)
    engine.shard, counts = True, set()
    for engine.rank in range(processes):
        counts.add(len(engine.shares(batch, 3)))
    assert len(counts) == 1, "where weights are divided, processes with fewer parts would be waited for without end"
