import errno
import inspect

import numpy as np
import pytest
import torch

from shoal import errors
from shoal.batches import Batch, call
from shoal.errors import ShoalError, count_of, did_you_mean

KINDS = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, ShoalError)]


_NUMPY = np._core if hasattr(np, "_core") else np.core  # until NumPy 2


def test_every_error_can_be_told_from_the_others_by_its_kind():
    kinds = [one.kind for one in KINDS]
    assert len(set(kinds)) == len(kinds) > 10


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_shows_message_and_hint_and_nothing_else(kind):
    assert str(kind("no such thing", "Do this.")) == "no such thing\n  Do this."
    assert str(kind("no such thing")) == "no such thing"
    assert (kind("a", "b").message, kind("a", "b").hint) == ("a", "b")


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.UsageError, ValueError),
        (errors.SpecError, ValueError),
        (errors.DataError, ValueError),
        (errors.WeightsError, ValueError),
        (errors.NonFiniteError, ValueError),
        (errors.PlanError, ValueError),
        (errors.ModelRaisedError, RuntimeError),
        (errors.TraceError, RuntimeError),
        (errors.SurgeryError, RuntimeError),
        (errors.ExportError, RuntimeError),
        (errors.NotReachedError, RuntimeError),
        (errors.PluginError, RuntimeError),
        (errors.UnknownBlockError, KeyError),
        (errors.FolderError, OSError),
        (errors.OutOfMemoryError, MemoryError),
    ],
)
def test_callers_can_catch_the_builtin_they_expect(kind, builtin):
    with pytest.raises(builtin, match="oops"):
        raise kind("oops")


def test_only_an_outcome_exits_with_one_wrong_use_exits_with_two():
    codes = {one.kind: one.exit_code for one in KINDS}
    assert {kind for kind, code in codes.items() if code == 1} == {"not_reached"}
    assert set(codes.values()) == {1, 2}


def test_near_matches_come_before_lists():
    assert did_you_mean("layer1.O", ["layer1.0", "head"]) == "Did you mean 'layer1.0'?"
    assert did_you_mean("layer1.00", ["layer1.0", "layer1.1"]).count(" or ") == 1


def test_without_a_near_match_the_first_names_are_listed():
    assert did_you_mean("zzz", ["a", "b"]) == "Known: a, b."
    assert did_you_mean("zzz", [f"name{i}" for i in range(20)]).endswith("name11, ....")
    assert did_you_mean("zzz", []) == ""


class OwnError(RuntimeError):
    """An exception of a library that passes on what torch says."""


def wrapped(error):
    try:
        raise ValueError("the loader failed") from error
    except ValueError as outer:
        return outer


def torch_says():
    try:
        torch.empty(1 << 60, dtype=torch.uint8)
    except RuntimeError as error:
        return error


SHORTAGES = [
    MemoryError(),
    torch_says(),
    _NUMPY._exceptions._ArrayMemoryError((1 << 50,), np.dtype("float64")),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:114] data. DefaultCPUAllocator: not enough memory: you tried to"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.87 GB)"),
    RuntimeError("std::bad_alloc"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    OwnError("out of memory"),
    wrapped(MemoryError()),
    wrapped(torch.OutOfMemoryError("CUDA out of memory")),
]
OTHERS = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    RuntimeError("Expected all tensors to be on the same device"),
    OSError(errno.ENOSPC, "No space left on device"),
    ValueError("out of memory is a phrase in this text"),
    errors.SpecError("there is no file 'out of memory.py'"),
    errors.ModelRaisedError("the model raised KeyError"),
    wrapped(KeyError("memory")),
]


@pytest.mark.parametrize("error", SHORTAGES, ids=repr)
def test_a_shortage_of_memory_is_recognised_however_it_is_raised(error):
    with pytest.raises(errors.OutOfMemoryError, match=r"^out of memory in the model") as raised:
        errors.check_memory(error, "in the model")
    assert raised.value.__cause__ is error
    assert "--batch-size" in raised.value.hint

    @errors.naming_memory_shortage()
    def work():
        raise error

    with pytest.raises(type(error) if isinstance(error, ValueError) else errors.OutOfMemoryError):
        work()


@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_nothing_else_is_taken_for_one(error):
    errors.check_memory(error)

    @errors.naming_memory_shortage()
    def work():
        raise error

    with pytest.raises(type(error)) as raised:
        work()
    assert raised.value is error


def test_a_model_without_memory_is_not_said_to_be_wrong():
    from torch import nn

    class Hungry(nn.Module):
        def forward(self, x):
            return torch.empty(1 << 60, dtype=torch.uint8)

    with pytest.raises(errors.OutOfMemoryError, match=r"in the model on an input of shape \(2, 3\) torch.float32"):
        call(Hungry(), Batch((torch.ones(2, 3),)))


def test_counts_have_the_right_noun():
    assert [count_of(count, "sample") for count in (0, 1, 2)] == ["0 samples", "1 sample", "2 samples"]
