"""Low-rank adapters: a student of transformers learns by small matrices next to its frozen ones, merged at the end.

Source: Hu et al. 2021, arXiv:2106.09685, by the library peft. What is frozen is one copy of the weights for student and
teacher together.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from shoal.errors import UsageError
from shoal.surgery.hugging_face import is_hugging_face

_MAPS = ("Linear", "Conv1D")  # of torch, and of transformers (GPT-2)
_ALPHA = 2  # times the rank: what adapters add is scaled by it


def check_lora(model: nn.Module, rank: int) -> None:
    """Refuse adapters where they cannot be had, before anything is copied.

    Raises:
        UsageError: peft is not installed, the network is not one of transformers, or has no map to adapt.
    """
    if not rank:
        return
    if not is_hugging_face(model):
        raise UsageError(
            f"LoRA is for networks of transformers, and {type(model).__name__} is none", "Leave --lora out."
        )
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise UsageError(f"LoRA needs the package {error.name}", "pip install 'shoal[lora]'") from error
    if not adapted_maps(model):
        raise UsageError("the network has no linear map that LoRA could adapt", "Leave --lora out.")


def adapted_maps(model: nn.Module, whole: Collection[str] = ()) -> list[str]:
    """The paths of the linear maps that get adapters: all but the output layer and those inside `whole`."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return [
        path
        for path, module in model.named_modules()
        if type(module).__name__ in _MAPS
        and module is not head
        and not any(f"{path}.".startswith(f"{other}.") for other in whole)
    ]


@dataclass(frozen=True)
class Adapters:
    """The maps with an adapter, and the parameters that were frozen before there were any."""

    paths: tuple[str, ...]
    frozen: Collection[str]


def add_adapters_(model: nn.Module, rank: int, whole: Collection[str] = ()) -> Adapters:
    """Freeze a network and give its linear maps adapters, in place; in the beginning they add nothing.

    Args:
        model: of transformers.
        rank: of the adapters.
        whole: modules that keep learning as they are: stand-ins.

    Returns:
        Which maps have an adapter.
    """
    from peft import LoraConfig, inject_adapter_in_model

    paths = adapted_maps(model, whole)
    adapters = Adapters(tuple(paths), {name for name, weight in model.named_parameters() if not weight.requires_grad})
    transposed = any(type(model.get_submodule(path)).__name__ == "Conv1D" for path in paths)
    config = LoraConfig(r=rank, lora_alpha=_ALPHA * rank, target_modules=paths, fan_in_fan_out=transposed)
    inject_adapter_in_model(config, model)
    for path in whole:
        model.get_submodule(path).requires_grad_()
    return adapters


def merge_adapters_(model: nn.Module, adapters: Adapters) -> nn.Module:
    """Add what the adapters learned to the weights, in tensors of their own, and take the adapters out; in place."""
    for path in adapters.paths:
        adapter: Any = model.get_submodule(path)
        base = adapter.get_base_layer()
        with torch.no_grad():
            delta = adapter.get_delta_weight(adapter.active_adapters[0])
            base.weight.data = (base.weight.float() + delta.float()).to(base.weight.dtype)  # the teacher may share it
        model.set_submodule(path, base, strict=True)
    if hasattr(model, "peft_config"):
        del model.peft_config
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in adapters.frozen)
    return model


def share_frozen_(model: nn.Module, source: nn.Module) -> int:
    """Let frozen weights of `model` lie where equal ones of `source` do; returns how many bytes that spares."""
    originals = dict(source.named_parameters(remove_duplicate=False))
    spared = 0
    for name, parameter in model.named_parameters():
        other = originals.get(name, originals.get(name.replace(".base_layer.", ".")))
        if other is None or other.requires_grad or parameter.requires_grad or other.data_ptr() == parameter.data_ptr():
            continue
        alike = (other.shape, other.dtype, other.device) == (parameter.shape, parameter.dtype, parameter.device)
        if alike and torch.equal(other, parameter):
            parameter.data = other.data
            spared += parameter.numel() * parameter.element_size()
    return spared
