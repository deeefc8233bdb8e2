"""Students and teachers whose weights are divided over processes learn what whole ones do."""

import sys
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import DTensor

from launching import outputs, start
from learners import Deep, config, data, validation
from shoal.errors import UsageError
from shoal.recover import DistillConfig
from shoal.recover.distill import CHECKPOINT, distill
from shoal.training.engine import Engine
from shoal.training.sharding import is_sharded, shard_, whole_state


class Nested(nn.Module):
    """Layers of more than one module each, in a list."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer(nn.Linear(8, 8), nn.GELU()) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


class Layer(nn.Sequential):
    """A class of its own, as layers have."""


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
    student, Deep(1), images_of, validation=validation, budget=8, config=replace(config, shard=True, accumulate=3),
    folder=folder
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
@pytest.mark.several
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
@pytest.mark.several
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


@pytest.fixture
def group():
    """A group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def divided(network):
    """The modules that are divided by themselves."""
    return {name for name, module in network.named_modules() if is_sharded(module)}


def test_layers_are_divided_one_by_one_and_parts_are_what_is_registered(group):
    network = shard_(Nested(), torch.device("cpu"), 1)
    assert divided(network) == {"", "layers.0", "layers.1"}
    for switch in (torch.no_grad, torch.enable_grad):  # without gradients the outermost one stayed whole
        with switch():
            output = network(torch.ones(2, 8))
        torch.testing.assert_close(output, Nested()(torch.ones(2, 8)), rtol=0, atol=0)
        assert all(isinstance(parameter, DTensor) for parameter in network.parameters())
    assert all(type(value) is torch.Tensor for value in whole_state(network).values())


@pytest.mark.parametrize(
    ("variable", "value", "names"),
    [
        ("FSDP_AUTO_WRAP_POLICY", "NO_WRAP", {""}),
        ("FSDP_TRANSFORMER_CLS_TO_WRAP", "Linear", {"", *(f"layers.{n}.0" for n in range(2)), "head"}),
        ("FSDP_CPU_RAM_EFFICIENT_LOADING", "true", {"", "layers.0", "layers.1"}),
    ],
)
def test_what_accelerate_launch_was_asked_for_holds(group, monkeypatch, variable, value, names):
    monkeypatch.setenv(variable, value)
    if variable == "FSDP_TRANSFORMER_CLS_TO_WRAP":
        monkeypatch.setenv("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")
    network = shard_(Nested(), torch.device("cpu"), 1)
    assert names <= divided(network)
    assert ("layers.0" in divided(network)) is ("layers.0" in names)


@pytest.mark.parametrize(
    ("policy", "message"), [("SIZE_BASED_WRAP", "containers"), ("TRANSFORMER_BASED_WRAP", "find"), ("odd", "odd")]
)
def test_what_accelerate_cannot_do_is_refused_in_its_words(group, monkeypatch, policy, message):
    monkeypatch.setenv("FSDP_AUTO_WRAP_POLICY", policy)
    monkeypatch.setenv("FSDP_MIN_NUM_PARAMS", "1")
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "NoSuchLayer")
    with pytest.raises(UsageError, match=f"cannot divide the network as it was asked to: .*{message}"):
        shard_(Nested(), torch.device("cpu"), 1)


@pytest.mark.parametrize("variable", ["FSDP_OFFLOAD_PARAMS", "FSDP_ACTIVATION_CHECKPOINTING"])
def test_what_it_was_asked_for_and_would_not_be_done_is_refused(group, monkeypatch, variable):
    monkeypatch.setenv(variable, "true")
    network = Nested()
    with pytest.raises(UsageError, match=f"--{variable.lower()} of accelerate launch does not go with --shard"):
        shard_(network, torch.device("cpu"), 1)
    assert not divided(network)


@pytest.mark.parametrize("missing", [True, False])
def test_an_accelerate_without_fsdp2_is_named(monkeypatch, missing):
    module = sys.modules["accelerate.utils"] if "accelerate.utils" in sys.modules else import_module("accelerate.utils")
    if missing:
        monkeypatch.setitem(sys.modules, "accelerate.utils", None)
    else:
        monkeypatch.delattr(module, "fsdp2_prepare_model")
    with pytest.raises(UsageError, match=r"FSDP2 needs accelerate 1\.6"):
        shard_(Nested(), torch.device("cpu"), 1)


def test_accelerate_that_was_asked_to_divide_and_a_run_that_does_not_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    state = SimpleNamespace(num_processes=2, process_index=0, device=torch.device("cpu"))
    monkeypatch.setattr("shoal.training.engine.joined", lambda device: state)
    with pytest.raises(UsageError, match="--use_fsdp asks for divided weights"):
        Engine("cpu", "fp32")
    assert Engine("cpu", "fp32", shard=True).shard


@pytest.mark.parametrize("engine", ["DEEPSPEED", "MEGATRON_LM"])
def test_other_engines_of_accelerate_are_refused(monkeypatch, engine):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with pytest.raises(UsageError, match=f"--use_{engine.lower()} asks for an engine that Shoal does not use"):
        Engine("cpu", "fp32")
