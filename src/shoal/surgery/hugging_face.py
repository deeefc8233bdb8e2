"""Hugging Face networks without some of their layers: rebuilt with fewer, and with working caches.

A removed layer leaves an empty place in its list. Deleting it there is not enough: the number of layers and the per-
layer lists in the configuration, and the index each attention keeps for the cache, must follow, or a reload fills the
gap with a random layer and cached generation breaks. Building the class again sets all of them as its authors meant
it.

Where the places stay, the cache has a slot for each layer, and transformers asks the first slot of each kind (full
attention, a sliding window) how long the text is so far. A slot without attention stays empty and answers 0. So the
first attention that remains takes that slot; where none of its kind remains, the cache is switched off.
"""

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from shoal.errors import SurgeryError

_ConfigPath = tuple[str | int, ...]
_HINT = "Shoal loads the output folder itself: shoal.load(folder)."
# What a backbone names by the number of a stage; without them its class works them out again.
_STAGES = ("stage_names", "out_features", "out_indices")
_Shapes = dict[str, tuple[int, ...]]


@dataclass
class EmptiedLayerList:
    """A list of layers from which some were removed."""

    path: str
    length: int
    removed_indices: set[int] = field(default_factory=set)

    @property
    def kept(self) -> list[int]:
        """The indices of the layers that remain."""
        return [index for index in range(self.length) if index not in self.removed_indices]


_ConfigVariant = Callable[[dict[str, Any], EmptiedLayerList], None]


def is_hugging_face(model: nn.Module) -> bool:
    """Whether `model` is a network of transformers itself: one that plain transformers could load."""
    bases = {base.__name__ for base in type(model).__mro__}
    return "PreTrainedModel" in bases and type(model).__module__.startswith("transformers.")


def compact_hf_model(model: nn.Module, removed: Sequence[str]) -> nn.Module:
    """The network without the empty places of its removed layers; it shares the tensors of `model`.

    Args:
        model: of transformers, with its blocks taken out by `remove_blocks`.
        removed: the paths of those blocks. Several may make up one layer, as the parts of a T5 block do.

    Returns:
        A network of the same class, in eval mode, with the configuration, the indices and the names of a shorter one.

    Raises:
        SurgeryError: no configuration of its class describes the shorter network; says why.
    """
    _check_kind(model)
    emptied = _emptied_lists(model, removed)
    _check_deepstack(model, emptied)
    config, names = model.config, {name: name for name in _named_tensors(model)}
    for emptied_list in emptied:
        config = _shorter_config(model, config, emptied_list)
        names = {old: new for old, name in names.items() if (new := _renamed(name, emptied_list)) is not None}
    return _assembled(model, config, names, emptied)


def _check_kind(model: nn.Module) -> None:
    if hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
        raise SurgeryError(
            "the network carries an adapter (PEFT, LoRA) in addition to its own weights",
            "Merge it first: model = model.merge_and_unload().",
        )
    if not is_hugging_face(model):
        raise SurgeryError(
            f"{type(model).__name__} is not a class of transformers", "Nobody without its code could load it."
        )


def _emptied_lists(model: nn.Module, removed: Sequence[str]) -> list[EmptiedLayerList]:
    """The lists from which whole layers were removed, the deepest ones last."""
    lists: dict[str, EmptiedLayerList] = {}
    covered: set[str] = set()
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList):
            continue
        for index, child in enumerate(module):
            inside = {name for name in removed if f"{name}.".startswith(f"{path}.{index}.")} - covered
            if inside and not _named_tensors(child):
                lists.setdefault(path, EmptiedLayerList(path, len(module))).removed_indices.add(index)
                covered |= inside
    for path in removed:
        if path not in covered:
            raise SurgeryError(_leftover_reason(model, path), _HINT + _drop_norms_hint(model, path))
    for emptied in lists.values():
        if not emptied.kept:
            raise SurgeryError(f"no layer is left in '{emptied.path}'", "Keep at least one.")
    return list(lists.values())


def _check_deepstack(model: nn.Module, lists: Sequence[EmptiedLayerList]) -> None:
    """Refuse to move layers whose index says which features of an image are added behind them (Qwen3-VL).

    Text alone does not show it, so no trial on it would.
    """
    places: list[Any] = []
    for key, value in _walk_config(model.config.to_dict()):  # type: ignore[operator, union-attr]
        if key == "deepstack_visual_indexes" and value:
            places = list(value)
    for emptied in lists:
        vision = "vis" in emptied.path
        bound = max(places) + 1 if places and vision else len(places)
        moved = [index for index in sorted(emptied.removed_indices) if index < bound]
        if moved:
            raise SurgeryError(
                f"features of images are {'taken' if vision else 'added'} behind the first {bound} layers of"
                f" '{emptied.path}' by their index (DeepStack), and layer {moved[0]} is one of them",
                f"Keep these layers (exclude '{emptied.path}.[0-{bound - 1}]'), or load it with shoal.load.",
            )


def _walk_config(plain: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every entry of a configuration, those of its parts too."""
    for key, value in plain.items():
        yield key, value
        if isinstance(value, Mapping):
            yield from _walk_config(value)


def _drop_norms_hint(model: nn.Module, path: str) -> str:
    """A hint for layers of which only norms remain."""
    owners = {name.rpartition(".")[0] or name for name in _named_tensors(model.get_submodule(path))}
    norms = bool(owners) and all("norm" in owner.lower() for owner in owners)
    return " Removed with norms 'drop' nothing would be left of it." if norms else ""


def _leftover_reason(model: nn.Module, path: str) -> str:
    inside = sorted({name.rpartition(".")[0] or name for name in _named_tensors(model.get_submodule(path))})
    if inside:
        return f"of the layer '{path}' something is left that its class cannot be without: {', '.join(inside)}"
    return f"'{path}' is no layer of a list, and its class has no network without it"


def _named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, tied ones under each of their names, buffers that are not saved too."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(module.named_buffers(remove_duplicate=False))}


def _renamed(name: str, emptied: EmptiedLayerList) -> str | None:
    """The name of a tensor or module once the layers have moved up; None in a removed layer."""
    head = f"{emptied.path}."
    if not name.startswith(head):
        return name
    number, dot, rest = name[len(head) :].partition(".")
    return f"{head}{emptied.kept.index(int(number))}{dot}{rest}" if int(number) in emptied.kept else None


def _shorter_config(model: nn.Module, config: Any, emptied: EmptiedLayerList) -> Any:
    """The configuration whose network is shorter in just this list.

    Found by trying each number that equals the length of the list, with the per-layer lists next to it cut, then uncut.
    """
    plain = config.to_dict()
    before = _list_lengths(type(model), config)
    for place in _config_paths(plain, emptied.length):
        for variant in (_cut_lists, _without_stages, _uncut_lists):
            tried = _changed_config(config, plain, place, emptied, variant)
            if tried is not None and _is_shorter(before, _list_lengths(type(model), tried), emptied):
                return tried
    reason = f"no field of {type(config).__name__} alone says how many layers '{emptied.path}' has"
    if any(part.isdigit() for part in emptied.path.split(".")):
        parts = ", ".join(f"'{emptied.path}.{index}'" for index in sorted(emptied.removed_indices))
        reason = f"only a part of a layer was removed ({parts}), and its class has no layer without that part"
    raise SurgeryError(reason, _HINT)


def _config_paths(plain: Mapping[str, Any], number: int) -> Iterator[_ConfigPath]:
    """The places of this number in a configuration, the likeliest names first."""
    paths = list(_find_number(plain, (), number))
    yield from sorted(paths, key=lambda place: not any("layer" in str(part) or part == "depths" for part in place))


def _find_number(item: Any, place: _ConfigPath, number: int) -> Iterator[_ConfigPath]:
    if isinstance(item, Mapping):
        for key, value in item.items():
            yield from _find_number(value, (*place, key), number)
    elif isinstance(item, list):
        for index, value in enumerate(item):
            yield from _find_number(value, (*place, index), number)
    elif item == number and type(item) is int:
        yield place


def _changed_config(
    config: Any, plain: dict[str, Any], place: _ConfigPath, emptied: EmptiedLayerList, variant: _ConfigVariant
) -> Any:
    """The configuration with a smaller number at `place`; None where its class refuses it."""
    plain = copy.deepcopy(plain)
    holder: Any = plain
    for part in place[:-1]:
        holder = holder[part]
    holder[place[-1]] = len(emptied.kept)
    if isinstance(holder, dict):
        variant(holder, emptied)
    try:
        made = type(config).from_dict(plain)
    except Exception:  # noqa: BLE001 - each configuration checks itself in its own way
        return None
    made._attn_implementation = config._attn_implementation
    return made


def _cut_lists(holder: dict[str, Any], emptied: EmptiedLayerList) -> None:
    for key, value in holder.items():
        if isinstance(value, list) and len(value) == emptied.length:
            holder[key] = [value[index] for index in emptied.kept]


def _without_stages(holder: dict[str, Any], emptied: EmptiedLayerList) -> None:
    _cut_lists(holder, emptied)
    for key in _STAGES:
        holder.pop(key, None)


def _uncut_lists(holder: dict[str, Any], emptied: EmptiedLayerList) -> None:
    """Leave lists alone that have this length by chance."""


def _list_lengths(kind: Any, config: Any) -> dict[str, int] | None:
    """How long each list of layers is in a network of this configuration; None where none can be built."""
    try:
        with torch.device("meta"):
            made = kind(config)
    except Exception:  # noqa: BLE001 - a wrong number fails wherever it is used first
        return None
    return {path: len(module) for path, module in made.named_modules() if isinstance(module, nn.ModuleList)}


def _is_shorter(before: dict[str, int] | None, after: dict[str, int] | None, emptied: EmptiedLayerList) -> bool:
    """Whether only this list is shorter, by exactly the removed layers."""
    if before is None or after is None or after.get(emptied.path) != len(emptied.kept):
        return False
    # Lists inside the layers come and go with them; all others must be as they were.
    inside = f"{emptied.path}."
    outside = [path for path in {*before, *after} if path != emptied.path and not path.startswith(inside)]
    return all(before.get(path) == after.get(path) for path in outside)


def _assembled(
    model: nn.Module, config: Any, names: Mapping[str, str], emptied: Sequence[EmptiedLayerList]
) -> nn.Module:
    """A network of this configuration with the tensors of `model` under their new names."""
    with torch.device("meta"):
        made = type(model)(config)
    old, new = _named_tensors(model), _named_tensors(made)
    expected = {name: tuple(tensor.shape) for name, tensor in new.items()}
    shapes = {names[name]: tuple(tensor.shape) for name, tensor in old.items() if name in names}
    _check_same(expected, shapes)
    for name, new_name in names.items():
        owner, _, leaf = new_name.rpartition(".")
        _put(made.get_submodule(owner), leaf, old[name])
    _copy_plain_tensors(model, made, emptied)
    if getattr(model, "generation_config", None) is not None:
        made.generation_config = copy.deepcopy(model.generation_config)
    return made.eval()


def _put(holder: nn.Module, leaf: str, tensor: Tensor) -> None:
    # The very same object under each of its names, so that tied weights stay tied.
    if isinstance(tensor, nn.Parameter):
        holder._parameters[leaf] = tensor
    else:
        holder._buffers[leaf] = tensor


def _check_same(expected: _Shapes, actual: _Shapes) -> None:
    if expected == actual:
        return
    differing = sorted(name for name in {*expected, *actual} if expected.get(name) != actual.get(name))
    raise SurgeryError(
        f"a shorter network of its class has other tensors, such as '{differing[0]}': its layers are not alike",
        _HINT,
    )


def _copy_plain_tensors(model: nn.Module, made: nn.Module, emptied: Sequence[EmptiedLayerList]) -> None:
    """Tensors that are plain attributes, which building without memory left empty."""
    for path, module in model.named_modules():
        name: str | None = path
        for emptied_list in emptied:
            name = _renamed(name, emptied_list) if name is not None and name != emptied_list.path else name
        if name is None:
            continue
        target = made.get_submodule(name)
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and key in vars(target):
                target.__dict__[key] = value


def attention_slots(model: nn.Module) -> dict[str, dict[int, nn.Module]]:
    """The modules that know their slot of the cache, by path without the number of the layer, then by slot."""
    slots: dict[str, dict[int, nn.Module]] = {}
    for path, module in model.named_modules():
        slot = getattr(module, "layer_idx", None)
        numbered = re.fullmatch(r"(.*?)\.(\d+)\.([^.\d][^\d]*)", path)
        if type(slot) is int and numbered and any(True for _ in module.parameters()):
            slots.setdefault(f"{numbered[1]}.*.{numbered[3]}", {})[slot] = module
    return slots


def repair_kv_cache_(model: nn.Module, before: dict[str, dict[int, nn.Module]]) -> None:
    """Give the slots that are queried for the length to attentions that remain.

    Args:
        model: a network that lost modules.
        before: what `attention_slots` returned for the whole network.
    """
    after = attention_slots(model)
    for place, slots in before.items():
        remaining = after.get(place, {})
        kinds = _attention_kinds(model, max(slots) + 1)
        for kind in dict.fromkeys(kinds):
            same_kind = [slot for slot, slot_kind in enumerate(kinds) if slot_kind == kind and slot in slots]
            staying = [slot for slot in same_kind if slot in remaining]
            if not same_kind or same_kind[0] in remaining:
                continue
            if staying:
                remaining[staying[0]].layer_idx = same_kind[0]  # type: ignore[assignment]
            elif same_kind[0] == 0:
                _disable_cache(model)


def _attention_kinds(model: nn.Module, count: int) -> list[str]:
    """The kind of attention of each slot of the cache, as far as the configuration tells."""
    config: Any = getattr(model, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config(decoder=True)
    kinds = getattr(config, "layer_types", None)
    return list(kinds) if isinstance(kinds, list) and len(kinds) >= count else ["attention"] * count


def _disable_cache(model: nn.Module) -> None:
    for holder in ("config", "generation_config"):
        settings: Any = getattr(model, holder, None)
        if settings is not None and hasattr(settings, "use_cache"):
            settings.use_cache = False
