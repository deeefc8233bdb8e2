"""Write a network with its recipe and record into a folder: safetensors and JSON, never a pickle."""

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

from shoal.errors import WeightsError
from shoal.offloaded import weights
from shoal.plan import Plan
from shoal.preserve import copied
from shoal.record import Record
from shoal.store.folder import PLAN, RECORD, WEIGHTS
from shoal.store.hugging_face import write_hugging_face
from shoal.store.tensors import write_tensors
from shoal.store.writing import write_text
from shoal.tensor_files import read_tensors


def save_weights(model: nn.Module, path: Path) -> None:
    """The whole state dict, tied tensors once for each name, as safetensors."""
    write_tensors(path, dict(weights(model)), {"format": "pt"})


def restore_weights(model: nn.Module, path: Path) -> None:
    """Load what `save_weights` wrote; names, shapes and dtypes must be the same.

    Raises:
        WeightsError: missing, damaged, or of another network; says what differs.
    """
    state, metadata = read_tensors(
        path, WeightsError, f"cannot read '{path}'", "Run the command that made the folder again."
    )
    if set(metadata) - {"format"}:  # a digest whose name was altered would go unnoticed
        raise WeightsError(f"'{path}' is damaged: its header is", "Run the command that made the folder again.")
    own = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    wrong = [f"'{name}' is missing" for name in own if name not in state]
    wrong += [f"'{name}' is not expected" for name in state if name not in own]
    wrong += [
        f"'{name}' is {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if wrong:
        raise WeightsError(
            f"'{path}' does not fit the network its plan describes: " + "; ".join(wrong[:5]),
            "The files of an output folder belong together; do not mix them.",
        )
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.dtype != state[name].dtype:
                _retype(model, name, state[name].dtype)
    # Some modules ask for the version their state was written at; these are of this very version.
    model.load_state_dict(_with_versions(state, model))


def _with_versions(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    versioned = OrderedDict(state)
    versioned._metadata = getattr(model.state_dict(), "_metadata", None)  # type: ignore[attr-defined]
    return versioned


def _retype(model: nn.Module, name: str, dtype: torch.dtype) -> None:
    owner, _, leaf = name.rpartition(".")
    tensor = getattr(model.get_submodule(owner), leaf)
    tensor.data = tensor.data.to(dtype)  # the tensor stays the same object, so that tied weights stay tied


def save(folder: Path, model: nn.Module, plan: Plan, record: Record | None = None) -> None:
    """Write weights, plan, `hf/` where transformers has a class for it, and (last) record into an existing folder."""
    save_weights(model, folder / WEIGHTS)
    write_text(folder / PLAN, plan.model_dump_json(indent=2) + "\n")
    write_hugging_face(folder, model, plan, record)
    if record is not None:
        write_text(folder / RECORD, record.model_dump_json(indent=2) + "\n")


def independent_copy(model: nn.Module) -> nn.Module:
    """A copy that shares nothing with `model`, on the CPU, in eval mode."""
    return copied(model).to("cpu").eval()
