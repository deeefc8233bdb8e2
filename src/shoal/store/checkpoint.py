"""One file holds a training run at the end of an epoch: tensors as safetensors, the rest as JSON in its header.

One file, so that it is written in one step: the one before survives a full disk or a crash. Nothing is pickled.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from shoal.errors import WeightsError
from shoal.files.reading import parse_json, refusing
from shoal.files.tensors import DIGEST, read_tensors, write_tensors

CHECKPOINT = "checkpoint.safetensors"
_VERSION = 2  # with a digest, which version 1 did not have
_READABLE = (1, _VERSION)
_KEY = "shoal-training"


def save_checkpoint(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write a checkpoint.

    Args:
        path: of the file.
        tensors: by name.
        state: plain data that JSON can hold.

    Raises:
        FolderError: the disk is full, or the folder is not writable; the checkpoint before is still there.
    """
    write_tensors(path, tensors, {_KEY: json.dumps({"version": _VERSION, **state})})


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_checkpoint` was given.

    Raises:
        WeightsError: damaged, or not written by a training run of Shoal.
    """
    message, hint = f"'{path}' is no checkpoint of a training run", "Choose a new --out to start again."
    tensors, header = read_tensors(path, WeightsError, message, hint, keys=(_KEY,))
    with refusing(WeightsError, message, hint):
        state = parse_json(header[_KEY], finite=False)
        if not isinstance(state, dict):
            raise ValueError("its state is no JSON object")
        if DIGEST not in header and state.get("version") != 1:
            raise ValueError("it holds no digest")
    if state.get("version") not in _READABLE:
        raise WeightsError(
            f"'{path}' was written by another version of Shoal (format {state.get('version')}, this one: {_VERSION})",
            "Finish the run with that version, or choose a new --out.",
        )
    return tensors, state


@contextmanager
def resuming(path: Path) -> Iterator[None]:
    """Restore a checkpoint: if it does not fit, it is reported as damaged.

    Raises:
        WeightsError: for any other exception inside.
    """
    with refusing(WeightsError, f"'{path}' is damaged", "Choose a new --out to start again."):
        yield


def check_same_network(path: Path, state: dict[str, Any], signature: dict[str, str]) -> None:
    """Refuse a checkpoint of another network.

    Args:
        path: of the checkpoint, for the message.
        state: its plain data.
        signature: name to dtype and shape for every tensor of the network that is to be resumed.

    Raises:
        WeightsError: names the first tensors that differ.
    """
    theirs = state.get("network", {})
    if theirs == signature:
        return
    wrong = [f"'{name}' is missing in it" for name in signature if name not in theirs]
    wrong += [f"'{name}' is not in the network" for name in theirs if name not in signature]
    wrong += [
        f"'{name}' is {theirs[name]} in it, {signature[name]} here"
        for name in signature
        if name in theirs and theirs[name] != signature[name]
    ]
    raise WeightsError(
        f"'{path}' is the checkpoint of another network: {'; '.join(wrong[:4])}",
        "Repeat the command that began the run, or choose a new --out.",
    )
