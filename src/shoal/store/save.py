"""Write a network with its recipe and record into a folder: safetensors and JSON, never a pickle."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shoal.batches import Batch
from shoal.errors import WeightsError
from shoal.files.tensors import read_tensors, write_tensors
from shoal.files.writing import write_text
from shoal.offloaded import is_offloaded, weights
from shoal.plan import Plan
from shoal.preserve import shared_copy
from shoal.record import Record
from shoal.sources.weights import kind_of
from shoal.store.diffusers_folder import write_diffusers
from shoal.store.entries import encode, is_plain_tensor, special_entries
from shoal.store.extras import save_extras
from shoal.store.folder import CARD, EXTRAS, PLAN, RECORD, WEIGHTS
from shoal.store.hugging_face import write_hugging_face
from shoal.store.model_card import CardFigures, model_card


def save_weights(model: nn.Module, path: Path) -> None:
    """The tensors of the state dict, tied ones once for each name, as safetensors."""
    tensors = {name: tensor for name, tensor in weights(model) if is_plain_tensor(tensor)}
    write_tensors(path, tensors, {"format": "pt"})


def check_savable(model: nn.Module) -> None:
    """Refuse a network that a folder could not give back.

    Raises:
        WeightsError: a buffer has no values, or an entry of the state dict is no tensor and no plain data; names it.
    """
    check_buffers(model)
    wrong = []
    for name, value in special_entries(model).items():
        try:
            encode(value, lambda tensor: "")
        except TypeError as error:
            wrong.append(f"'{name}' of its state dict holds {error}")
    if wrong:
        raise WeightsError(
            f"a folder cannot hold this network: {'; '.join(wrong[:3])}{'; ...' if len(wrong) > 3 else ''}",
            "Folders hold tensors and plain data, never a pickle: let get_extra_state return these, or compress before "
            "quantising. In this process result.model can be used as it is.",
        )


def check_buffers(model: nn.Module) -> None:
    """Refuse a buffer without values, which no copy can be made of; those of an offloaded network are on the disk.

    Raises:
        WeightsError: names them.
    """
    if is_offloaded(model):
        return
    empty = [f"'{name}'" for name, buffer in model.named_buffers() if buffer.is_meta]
    if empty:
        raise WeightsError(
            f"buffers have no values, they are on torch's 'meta' device: {', '.join(empty[:3])}"
            f"{', ...' if len(empty) > 3 else ''}",
            "Compute them on the CPU, or delete those that are not used, and compress again.",
        )


def restore_weights(model: nn.Module, path: Path, states: Mapping[str, Any] | None = None) -> None:
    """Load what `save_weights` wrote; names, shapes and dtypes must be the same.

    Args:
        model: the network to load into.
        path: of the file.
        states: entries of the state dict that no weights file holds; by default what the network has there.

    Raises:
        WeightsError: missing, damaged, or of another network; says what differs.
    """
    hint = "Run the command that made the folder again."
    state, _ = read_tensors(path, WeightsError, f"cannot read '{path}'", hint, keys=("format",))
    expected = {name: tensor for name, tensor in model.state_dict().items() if is_plain_tensor(tensor)}
    wrong = [f"'{name}' is missing" for name in expected if name not in state]
    wrong += [f"'{name}' is not expected" for name in state if name not in expected]
    wrong += [
        f"'{name}' holds {kind_of(state[name].dtype)}, expected {kind_of(expected[name].dtype)}"
        for name in expected
        if name in state and kind_of(state[name].dtype) != kind_of(expected[name].dtype)
    ]
    wrong += [
        f"'{name}' is {tuple(state[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    if wrong:
        raise WeightsError(
            f"'{path}' does not fit the network its plan describes: " + "; ".join(wrong[:5]),
            "The files of an output folder belong together; do not mix them.",
        )
    with torch.no_grad():
        for name, tensor in expected.items():
            if tensor.dtype != state[name].dtype:
                _retype(model, name, state[name].dtype)
    # Some modules ask for the version their state was written at; these are of this very version.
    try:
        model.load_state_dict(_with_versions({**special_entries(model), **(states or {}), **state}, model))
    except Exception as error:
        raise WeightsError(f"the network does not take its own state from '{path}': {error}") from error


def _with_versions(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    versioned = OrderedDict(state)
    versioned._metadata = getattr(model.state_dict(), "_metadata", None)  # type: ignore[attr-defined]
    return versioned


def _retype(model: nn.Module, name: str, dtype: torch.dtype) -> None:
    owner, _, leaf = name.rpartition(".")
    tensor = getattr(model.get_submodule(owner), leaf)
    tensor.data = tensor.data.to(dtype)  # the tensor stays the same object, so that tied weights stay tied


def save(
    folder: Path,
    model: nn.Module,
    plan: Plan,
    record: Record | None = None,
    *,
    measured: CardFigures | None = None,
    example: Batch | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write weights, plan, card, `hf/` where transformers has a class for it, and last the record; the folder exists.

    Args:
        folder: exists.
        model: the network that came out.
        plan: rebuilds it.
        record: of the run, where there is one.
        measured: for the model card; by default that of the record.
        example: a mini-batch, for how large integer inputs are.
        check: called before the record is written; raises where the folder cannot be loaded again.

    Raises:
        WeightsError: a folder cannot hold the network, see `check_savable`; nothing was written.
        FolderError: the folder cannot be written.
    """
    check_savable(model)
    save_weights(model, folder / WEIGHTS)
    save_extras(model, plan.inputs, folder / EXTRAS, example)
    write_text(folder / PLAN, plan.model_dump_json(indent=2) + "\n")
    if measured is None and record is not None:
        measured = CardFigures.of_record(record)
    write_text(folder / CARD, model_card(model, plan, measured))
    write_hugging_face(folder, model, plan, record)
    write_diffusers(folder, model, plan)
    if check is not None:
        check(folder)
    if record is not None:
        write_text(folder / RECORD, record.model_dump_json(indent=2) + "\n")


def copy_on_cpu(model: nn.Module) -> nn.Module:
    """A copy on the CPU, in eval mode, to look at: its weights may lie where those of `model` do, see `shared_copy`.

    Raises:
        WeightsError: a buffer has no values.
    """
    check_buffers(model)
    return shared_copy(model).to("cpu").eval()
