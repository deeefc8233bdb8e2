"""Write a shortened network of diffusers as a folder that plain diffusers loads, checked by loading it again.

Only whole blocks of one list, whose length the configuration names, can be removed that way (`transformer_blocks` and
`num_layers` of the DiT family); for other changes a note says why.
"""

import secrets
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoal.batches import call
from shoal.errors import FolderError, SurgeryError, check_memory
from shoal.files.writing import PARTIAL, write_text
from shoal.outputs import distance, read_outputs
from shoal.plan import Plan
from shoal.surgery import example_of

FOLDER, NOTE = "diffusers", "diffusers-not-written.md"
# The lists of blocks whose length a configuration of diffusers names.
_LENGTHS = {
    "transformer_blocks": "num_layers",
    "single_transformer_blocks": "num_single_layers",
    "blocks": "num_layers",
}


def write_diffusers(folder: Path, model: nn.Module, plan: Plan) -> str | None:
    """Write `diffusers/` into an output folder, where the network is one of diffusers and something was removed.

    Returns:
        Why there is none, which is also in a note in the folder; None if it was written or not requested.

    Raises:
        FolderError: the folder cannot be written.
    """
    if not (plan.actions and type(model).__module__.startswith("diffusers.models.")):
        return None
    place = folder / f".{FOLDER}-{secrets.token_hex(6)}{PARTIAL}"
    try:
        short = _shortened(model, plan)
        _check_same(model, short, plan)
        place.mkdir()
        short.save_pretrained(place, safe_serialization=True)
        loaded = type(short).from_pretrained(place, use_safetensors=True, local_files_only=True).eval()
        _check_same(model, loaded, plan)
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
        place.rename(folder / FOLDER)
        (folder / NOTE).unlink(missing_ok=True)
    except SurgeryError as error:
        write_text(folder / NOTE, f"# Not written: diffusers/\n\n{error.message}\n\n{error.hint}\n")
        return error.message
    except OSError as error:
        raise FolderError(f"cannot write '{FOLDER}' in '{folder}': {error}", "Free some space.") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return None


def _shortened(model: Any, plan: Plan) -> Any:
    """The network as its authors' class makes it from a configuration of fewer layers.

    Raises:
        SurgeryError: the class cannot be that network.
    """
    if plan.removed_units or plan.replaced:
        raise SurgeryError("diffusers has no class with half a block or a fitted replacement", _LOADED)
    lengths: dict[str, int] = {}
    for path in plan.removed:
        name, _, index = path.rpartition(".")
        if name not in _LENGTHS or not index.isdigit() or not hasattr(model.config, _LENGTHS[name]):
            raise SurgeryError(
                f"the configuration of {type(model).__name__} cannot say that {path} is missing", _LOADED
            )
        lengths[name] = len(_left(model, name, plan))
    changes = {_LENGTHS[name]: length for name, length in lengths.items()}
    short: Any = type(model).from_config({**model.config, **changes})
    try:
        short.load_state_dict(_renumbered(model, {name: _left(model, name, plan) for name in lengths}))
    except RuntimeError as error:
        check_memory(error, "while a network of fewer layers was filled")
        raise SurgeryError(f"a {type(model).__name__} of fewer layers has other weights: {error}", _LOADED) from error
    return short.to(next(model.parameters()).dtype).eval()


def _left(model: nn.Module, name: str, plan: Plan) -> list[str]:
    """The keys of the blocks of a list that were not removed."""
    removed = set(plan.removed)
    return [key for key, _ in model.get_submodule(name).named_children() if f"{name}.{key}" not in removed]


def _renumbered(model: nn.Module, left: dict[str, list[str]]) -> dict[str, Tensor]:
    """The state dict with the blocks that are left counted from 0."""
    numbers = {
        f"{name}.{key}.": f"{name}.{position}." for name, keys in left.items() for position, key in enumerate(keys)
    }
    state = {}
    for key, tensor in model.state_dict().items():
        old = next((prefix for prefix in numbers if key.startswith(prefix)), None)
        state[key if old is None else numbers[old] + key.removeprefix(old)] = tensor
    return state


@torch.no_grad()
def _check_same(model: nn.Module, other: nn.Module, plan: Plan) -> None:
    """Refuse a network that does not return the same to the bit.

    Raises:
        SurgeryError: with the difference.
    """
    generator = torch.Generator().manual_seed(0)
    example = example_of(plan.inputs)
    for values in example.tensors:
        if values.is_floating_point():
            values.normal_(generator=generator)
    left, right = (read_outputs(call(network, example)).tensors for network in (model, other))
    for name, tensor in left.items():
        if name not in right or not distance(tensor, right[name]).bitwise:
            raise SurgeryError(f"diffusers makes another network of it: '{name}' differs", _LOADED)


_LOADED = "Shoal loads the output folder itself: shoal.load(folder)."
