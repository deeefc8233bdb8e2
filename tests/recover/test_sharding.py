"""Students and teachers whose weights are divided over processes learn what whole ones do."""

import pytest
import torch
from safetensors.torch import load_file

from launching import outputs, start
from learners import Deep, config, data, validation
from shoal.errors import UsageError
from shoal.recover import DistillConfig
from shoal.recover.distill import CHECKPOINT, distill

CODE = """
import os, signal, sys
from dataclasses import replace
import torch
from safetensors.torch import save_file
from learners import Deep, config, data, validation
from shoal.recover.distill import distill

folder, weights, end_at, dtype = sys.argv[1], sys.argv[2], int(sys.argv[3]), getattr(torch, sys.argv[4])
steps = 0

def images_of(epoch):
    global steps
    for images, labels in data:
        if steps == end_at and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        steps += 1
        yield images.to(dtype), labels

validation = [images.to(dtype) for images in validation]
student = Deep(0).to(dtype)
result = distill(
    student, Deep(1), images_of, validation=validation, budget=8, config=replace(config, shard=True), folder=folder
)
assert {parameter.dtype for parameter in result.model.parameters()} == {dtype}
assert type(result.model.head.weight) is torch.nn.Parameter, "it comes out whole"
save_file(result.model.state_dict(), f"{weights}-{os.environ['RANK']}")
print(result.recovery.processes, result.recovery.samples, list(result.warnings))
"""


def alone(dtype=torch.float32):
    samples = [(images.to(dtype), labels) for images, labels in data]
    judged = [images.to(dtype) for images in validation]
    return distill(Deep(0).to(dtype), Deep(1), samples, validation=judged, budget=8, config=config)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_divided_student_learns_what_a_whole_one_does(tmp_path, dtype):
    expected = alone(getattr(torch, dtype))
    processes = start(CODE, 2, tmp_path / "run", tmp_path / "weights", -1, dtype)
    printed = outputs(processes)
    assert [process.returncode for process in processes] == [0, 0], printed
    assert printed[0][0].split()[:2] == ["2", str(expected.recovery.samples)], "every sample counted once"
    for rank in range(2):
        learned = load_file(tmp_path / f"weights-{rank}")
        for name, value in expected.model.state_dict().items():
            torch.testing.assert_close(learned[name], value, rtol=0, atol=2e-6 if dtype == "float32" else 2e-2)
    assert not torch.equal(learned["head.weight"], Deep(0).to(getattr(torch, dtype)).head.weight)
    assert len(list((tmp_path / "run" / "shards").iterdir())) == 1, "earlier checkpoints are removed"


@pytest.mark.slow
def test_another_number_of_processes_takes_its_own_parts_and_one_is_refused_in_words(tmp_path):
    printed = outputs(start(CODE, 2, tmp_path / "run", tmp_path / "weights", 6, "float32"))
    assert all("Terminated" in error for _, error in printed), printed
    assert not any("overwriting" in error for _, error in printed), "the checkpoint before is whole until the next is"
    assert (tmp_path / "run" / CHECKPOINT).exists()
    with pytest.raises(UsageError, match="shard"):
        distill(Deep(0), Deep(1), data, validation=validation, budget=8, config=config, folder=tmp_path / "run")
    processes = start(CODE, 3, tmp_path / "run", tmp_path / "weights", -1, "float32")
    printed = outputs(processes)
    assert [process.returncode for process in processes] == [0] * 3, printed
    assert "begun by 2 and continued by 3 processes" in printed[0][0]
    learned = load_file(tmp_path / "weights-2")
    for name, value in alone().model.state_dict().items():
        torch.testing.assert_close(learned[name], value, rtol=0, atol=2e-6)


def test_one_process_has_nothing_to_divide_over():
    with pytest.raises(UsageError, match=r"several processes \(shard\), and there is one"):
        distill(Deep(0), Deep(1), data, validation=validation, budget=2, config=DistillConfig(shard=True))


@pytest.mark.parametrize("words", [{"shard": 1}, {"shard": True, "lora": 4}])
def test_what_does_not_go_with_it_is_refused(words):
    with pytest.raises(UsageError, match="shard"):
        DistillConfig(**words)
