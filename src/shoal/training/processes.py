"""Several processes of one command, as a launcher starts them: who leads, and how the others come by what it knows.

One process needs nothing but torch. Several are brought together by accelerate's `PartialState`, which joins what a
launcher or the caller has begun; the state of a caller's own `Accelerator` is neither read nor changed.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from shoal.errors import UsageError, WorkersError

Value = TypeVar("Value")
# How often a process looks whether the first one is ready, in seconds.
_PAUSE = 0.2
# What `accelerate launch` tells its processes, and the options that it was given for it.
_OTHER_ENGINES = {"ACCELERATE_USE_DEEPSPEED": "--use_deepspeed", "ACCELERATE_USE_MEGATRON_LM": "--use_megatron_lm"}
_ALONE: ContextVar[bool] = ContextVar("alone", default=False)
_CALLS = count()


def are_several() -> bool:
    """Whether a launcher started several processes, or the caller has joined some already."""
    if _ALONE.get():
        return False
    joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1") or (joined and torch.distributed.get_world_size() > 1)


@contextmanager
def alone() -> Iterator[None]:
    """What runs inside takes no notice of other processes: it trains as one does."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def is_launched_with(name: str) -> bool:
    """Whether `accelerate launch` has set this flag of its own for the processes."""
    return os.environ.get(name, "").lower() in ("true", "1")


def joined(device: str) -> Any:
    """The state of several processes, which are brought together where they are not yet.

    Raises:
        UsageError: accelerate is missing, or was asked for an engine that is not used here.
        WorkersError: a process ended before all were together.
    """
    for name, option in _OTHER_ENGINES.items():
        if is_launched_with(name):
            raise UsageError(
                f"accelerate launch {option} asks for an engine that Shoal does not use",
                "Leave it out; `shoal distill --shard` divides the weights by FSDP2.",
            )
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise UsageError("several processes need accelerate, which is missing", "pip install accelerate") from error
    try:
        return PartialState(cpu=torch.device(device).type == "cpu")
    except torch.distributed.DistError as error:
        reason = str(error).partition("\n")[0]
        raise WorkersError(
            f"a process ended while all were joining ({reason}), and the others cannot go on alone",
            "Its own output says why.",
        ) from error


def leads(device: str) -> bool:
    """Whether this process is the only one, or of several the one that writes and speaks."""
    return not are_several() or bool(joined(device).is_main_process)


def broadcast_from_main(value: Value, device: str) -> Value:
    """The value that the main process has, in every process that trains together; with one process it is `value`.

    Args:
        value: plain data; what the other processes give is ignored.
        device: where they train.
    """
    if not are_several():
        return value
    from accelerate.utils import broadcast_object_list

    joined(device)
    values = [value]
    broadcast_object_list(values)
    return values[0]


def from_main(function: Callable[[], Value], device: str) -> Value:
    """What the main process computes, alone, in every process; the others wait for it however long it takes.

    Args:
        function: returns plain data; only the main process calls it.
        device: where they train.

    Raises:
        WorkersError: in the other processes, where the main one fails or is gone.
    """
    if not are_several():
        return function()
    if joined(device).is_main_process:
        return broadcast_from_main(_announced(function), device)
    _wait()
    return broadcast_from_main(None, device)  # type: ignore[return-value]


def _announced(function: Callable[[], Value]) -> Value:
    """The result of a function; the other processes learn whether there is one."""
    store, key = _store(), _next_key()
    try:
        with alone():
            value = function()
    except BaseException:
        store.set(key, "failed")
        raise
    store.set(key, "done")
    return value


def _wait() -> None:
    """Until the main process has announced a result. A collective call would be given up after half an hour."""
    key = _next_key()
    try:
        store = _store()
        while not store.check([key]):
            time.sleep(_PAUSE)
        failed = store.get(key) == b"failed"
    except RuntimeError:  # the store was in the main process
        failed = True
    if failed:
        raise WorkersError("process 0 failed, and the others cannot go on alone", "Its own output says why.")


def _store() -> Any:
    return torch.distributed.distributed_c10d._get_default_store()


def _next_key() -> str:
    """The same in every process, since all of them make the same calls."""
    return f"shoal/main/{next(_CALLS)}"


def share_tensors_(model: nn.Module) -> nn.Module:
    """The model with the weights and buffers that it has in the main process; in place, its structure is the same."""
    if are_several():
        tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
        for name in sorted(tensors):
            value = tensors[name].detach().contiguous()  # the memory layout may differ
            torch.distributed.broadcast(value, src=0)
            tensors[name].detach().copy_(value)
    return model
