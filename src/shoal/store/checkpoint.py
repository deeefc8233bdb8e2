"""One file holds a training run at the end of an epoch: tensors as safetensors, the rest as JSON in its header.

One file, so that it is written in one step: the one before survives a full disk or a crash. Nothing is pickled.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from shoal.alignment import aligned
from shoal.errors import WeightsError
from shoal.store.writing import write_atomically

CHECKPOINT = "checkpoint.safetensors"
_VERSION = 1
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
    plain = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}
    header = {_KEY: json.dumps({"version": _VERSION, **state})}

    def write(temporary: Path) -> None:
        try:
            save_file(plain, str(temporary), metadata=header)
        except SafetensorError as error:  # a full disk comes as one of these
            raise OSError(str(error)) from error

    write_atomically(path, write)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_checkpoint` was given.

    Raises:
        WeightsError: damaged, or not written by a training run of Shoal.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: aligned(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 - not a dict
        state = json.loads(header[_KEY])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise WeightsError(
            f"'{path}' is no checkpoint of a training run: {error}", "Choose a new --out to start again."
        ) from error
    if state.get("version") != _VERSION:
        raise WeightsError(
            f"'{path}' was written by another version of Shoal (format {state.get('version')}, this one: {_VERSION})",
            "Finish the run with that version, or choose a new --out.",
        )
    return tensors, state


def check_same_network(path: Path, state: dict[str, Any], signature: dict[str, str]) -> None:
    """Refuse a checkpoint of another network.

    Args:
        path: of the checkpoint, for the message.
        state: its plain data.
        signature: name to dtype and shape for every tensor of the network that is to go on.

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
