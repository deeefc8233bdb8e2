"""Load a state dict from a file into a network: everything is checked before the network is changed."""

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoal.arguments import as_path
from shoal.errors import WeightsError, did_you_mean
from shoal.files.reading import check_member, is_file, is_folder, open_file, read_json, refusing
from shoal.files.tensors import read_tensors
from shoal.preserve import check_finite

State = dict[str, Tensor]
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "state_dict_ema", "ema_state_dict", "model_ema")
# What torch.compile, FSDP and activation checkpointing put in the middle of names, wherever they wrap a module.
_INFIXES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_SHOWN = 3


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a checkpoint into `model`, in place, or leave the model as it was and say why.

    Read are `.safetensors`, a sharded `.safetensors.index.json`, and `.pt`, `.pth`, `.bin` with tensors only.
    A state dict may be wrapped as `state_dict`, `model` or the like; of averaged and plain weights
    the plain ones are read. Its names may carry a prefix (of DataParallel, Lightning, an average of weights), and what
    has another prefix belongs to other modules; if two prefixes fit, the file is refused.

    Raises:
        UsageError: `path` is none.
        WeightsError: the file is missing, unreadable, needs unpickling, or does not fit the network.
        NonFiniteError: the weights hold NaN or Inf.
    """
    path = as_path("weights", path)
    state = _without_prefix(read_state(path), model, path.name)
    _check_fit(model, state, path.name)
    check_finite(_Checkpoint(state))
    model.load_state_dict(state, strict=False)


def read_state(path: Path) -> State:
    """The tensors in a checkpoint file by name, on the CPU.

    Raises:
        WeightsError: the file is missing, of an unknown kind, unreadable, or needs unpickling.
    """
    if not is_file(path):
        what = "is a folder" if is_folder(path) else "is no regular file" if os.path.lexists(path) else "does not exist"
        raise WeightsError(f"the weights file '{path}' {what}", "Name a .safetensors, .pt, .pth or .bin file.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.name.endswith(".safetensors.index.json"):
        return _read_shards(path)
    if path.suffix in (".pt", ".pth", ".bin"):
        return _read_torch(path)
    raise WeightsError(
        f"'{path.name}' is not a kind of weights file that Shoal reads",
        "Known: .safetensors, .safetensors.index.json, .pt, .pth, .bin.",
    )


def _read_safetensors(path: Path) -> State:
    message = f"'{path.name}' cannot be read as safetensors"
    return read_tensors(path, WeightsError, message, "Fetch the file again.")[0]


def _read_shards(path: Path) -> State:
    with refusing(WeightsError, f"'{path.name}' is not an index of safetensors shards", "Fetch the file again."):
        where = {str(name): str(shard) for name, shard in read_json(path)["weight_map"].items()}
        shards = sorted(set(where.values()))
    state: State = {}
    for name in shards:
        # An index is data from elsewhere: it may name files in its own folder only.
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise WeightsError(f"'{path.name}' names a shard outside its folder: '{name}'", "Fetch the file again.")
        _check_shards(path, shards)
        state.update(read_state(path.with_name(name)))
    absent = sorted(name for name in where if name not in state)
    if absent:
        raise WeightsError(
            f"'{path.name}' promises tensors that its shards do not hold: "
            f"'{absent[0]}' should be in '{where[absent[0]]}', {len(absent)} in all",
            "Fetch the index and the shards again, from one version of the network.",
        )
    return state


def _check_shards(index: Path, shards: list[str]) -> None:
    missing = [name for name in shards if not is_file(index.with_name(name))]
    if missing:
        raise WeightsError(
            f"{len(missing)} of the {len(shards)} shards that '{index.name}' names are not in its folder: "
            f"{', '.join(missing[:_SHOWN])}{', ...' if len(missing) > _SHOWN else ''}",
            "Put all shards into one folder with the index.",
        )


def _read_torch(path: Path) -> State:
    with refusing(WeightsError, f"'{path.name}' cannot be read", "Fetch the file again."):
        try:
            with open_file(path) as file:
                if zipfile.is_zipfile(file):
                    for member in zipfile.ZipFile(file).infolist():
                        check_member(member)
                file.seek(0)
                content = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise WeightsError(
                f"'{path.name}' holds more than tensors: reading it would run code from the file",
                "Convert it: torch.load it in a process that you trust, save its state dict with safetensors.",
            ) from error
    return _unwrapped(content, path.name)


def _unwrapped(loaded: Any, file: str) -> State:
    content: Mapping[Any, Any] = loaded if isinstance(loaded, Mapping) else {}
    for _ in _WRAPPERS:  # not for ever: a checkpoint may hold itself
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    state = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not state:
        raise WeightsError(
            f"'{file}' holds no state dict but {type(loaded).__name__}",
            "Expected: names and tensors, alone or under 'state_dict', 'model' or 'model_state_dict'.",
        )
    for name, value in state.items():
        _check_dense(name, value, file)
    return state


def _check_dense(name: str, value: Tensor, file: str) -> None:
    """Refuse what is no plain tensor, or claims to be larger than what the file holds of it."""
    with refusing(WeightsError, f"'{file}' holds '{name}', which is no plain tensor", "Save a plain state dict."):
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise ValueError(f"{value.layout}, {value.dtype}, on {value.device.type}")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"of shape {tuple(value.shape)}, it holds {value.untyped_storage().nbytes()} bytes")


def kind_of(dtype: torch.dtype) -> str:
    """The kind of numbers of a dtype, whatever their precision."""
    if dtype == torch.bool:
        return "truth values"
    if dtype.is_complex:
        return "complex numbers"
    return "floating-point numbers" if dtype.is_floating_point else "whole numbers"


def _without_prefix(state: State, model: nn.Module, file: str) -> State:
    """The state dict under the names of the network, where just one prefix in front of all its names fits."""
    expected = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    if not any(infix in name for name in expected for infix in _INFIXES):
        state = {_without_infixes(name): value for name, value in state.items()}
    needed = next((name for name in expected if not name.endswith("num_batches_tracked")), "")
    prefixes = sorted({name[: -len(needed)] for name in state if needed and name.endswith(f".{needed}")})
    whole = [prefix for prefix in ("", *prefixes) if _has_all(expected, _below(state, prefix))]
    if "" in whole or not prefixes:
        return state
    if len(whole) > 1:
        raise WeightsError(
            f"'{file}' holds several networks that fit, under the prefixes {', '.join(map(repr, whole))}",
            "Save the one to load in a file of its own, without its prefix.",
        )
    # Where none fits whole, the one that fits best makes the message of what is missing readable.
    best = max(prefixes, key=lambda prefix: len(expected.keys() & _below(state, prefix).keys()))
    return _below(state, (whole or [best])[0])


def _without_infixes(name: str) -> str:
    for infix in _INFIXES:
        name = name.replace(infix, "")
    return name


def _below(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _has_all(expected: State, state: State) -> bool:
    return all(name in state or _may_be_absent(name, expected, state) for name in expected)


def _check_fit(model: nn.Module, state: State, file: str) -> None:
    expected = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    missing = [name for name in expected if name not in state and not _may_be_absent(name, expected, state)]
    unexpected = [name for name in state if name not in expected]
    wrong = [name for name in expected if name in state and expected[name].shape != state[name].shape]
    kinds = [
        f"{name} holds {kind_of(state[name].dtype)}, expected {kind_of(expected[name].dtype)}"
        for name in expected
        if name in state and kind_of(state[name].dtype) != kind_of(expected[name].dtype)
    ]
    if not (missing or unexpected or wrong or kinds):
        return
    parts = [
        _listed("missing", [f"{name} {tuple(expected[name].shape)}" for name in missing]),
        _listed("unexpected", [f"{name} {tuple(state[name].shape)}" for name in unexpected]),
        _listed(
            "of another shape",
            [f"{name} {tuple(state[name].shape)}, expected {tuple(expected[name].shape)}" for name in wrong],
        ),
        _listed("of another kind", kinds),
    ]
    hint = "Is this checkpoint for another depth, width or number of classes?"
    if unexpected and missing:
        hint = f"{hint} {unexpected[0]}: {did_you_mean(unexpected[0], missing)}"
    raise WeightsError(f"'{file}' does not fit the network: " + "; ".join(part for part in parts if part), hint)


def _may_be_absent(name: str, expected: State, state: State) -> bool:
    # Old checkpoints do not count batches; tied weights are saved under one of their names only.
    if name.endswith("num_batches_tracked"):
        return True
    place = expected[name].data_ptr()
    return place != 0 and any(
        alias != name
        and alias in state
        and expected[alias].data_ptr() == place
        and expected[alias].shape == expected[name].shape
        for alias in expected
    )


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{more})"


class _Checkpoint(nn.Module):
    """A state dict that can be checked like a model before any model is touched."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self._state = state

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self._state
