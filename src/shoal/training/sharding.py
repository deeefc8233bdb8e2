"""Networks whose weights are divided over processes (FSDP2), and checkpoints that each process writes its part of.

Torch's distributed checkpoints may be read by another number of processes: each takes the part that it needs.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from shoal.errors import UsageError

FOLDER = "shards"


def shard_(model: nn.Module, device: torch.device, processes: int) -> nn.Module:
    """Divide the weights over all processes, layer by layer: each is whole only while it runs; in place.

    Accelerate's plugin divides them, and heeds what `accelerate launch` was asked for (`--fsdp_auto_wrap_policy`,
    `--fsdp_transformer_layer_cls_to_wrap`).

    Raises:
        UsageError: accelerate is missing or too old, or was asked for what it cannot do, or does not go with the rest.
    """
    try:
        from accelerate.utils import FullyShardedDataParallelPlugin, fsdp2_prepare_model
    except ImportError as error:
        raise UsageError("FSDP2 needs accelerate 1.6 or newer", "pip install --upgrade accelerate") from error
    wrapping: dict[str, Any] = {}
    if "FSDP_AUTO_WRAP_POLICY" not in os.environ:
        wrapping = {
            "auto_wrap_policy": "transformer_based_wrap",
            "transformer_cls_names_to_wrap": _layer_classes(model),
        }
    try:
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, **wrapping)
        _check_launched(plugin)
        fsdp2_prepare_model(_sharding(plugin, device, processes), model)
    except ValueError as error:
        raise UsageError(
            f"accelerate cannot divide the network as it was asked to: {str(error).strip().splitlines()[0]}",
            "Leave out the --fsdp_ options of accelerate launch, or name a class of layers.",
        ) from error
    # The outermost one would stay whole after a forward without gradients, and its parts would not be what learns.
    model.set_reshard_after_forward(True)  # type: ignore[operator]
    return model


def _sharding(plugin: Any, device: torch.device, processes: int) -> Any:
    """What accelerate reads of an `Accelerator` when it divides a network.

    One of its own would change the state of the caller's, would want an optimizer with every network, the teacher's
    too, and divides nothing on CPUs. Every process holds the weights, so none has to be sent them.
    """
    from torch.distributed.device_mesh import init_device_mesh

    plugin.cpu_ram_efficient_loading = False
    return SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        torch_device_mesh=init_device_mesh(device.type, (processes,), mesh_dim_names=("dp_shard",)),
        parallelism_config=SimpleNamespace(fsdp_dim_names=["dp_shard"]),
        device=device,
        mixed_precision="no",  # autocast, as without FSDP: the same figures
        is_main_process=torch.distributed.get_rank() == 0,
    )


def _check_launched(plugin: Any) -> None:
    """Refuse what `accelerate launch` was asked for and would not be done."""
    from torch.distributed.fsdp import CPUOffloadPolicy

    refused = {
        "--fsdp_offload_params": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
        "--fsdp_activation_checkpointing": plugin.activation_checkpointing,
    }
    for option in (option for option, is_set in refused.items() if is_set):
        raise UsageError(f"{option} of accelerate launch does not go with --shard", "Leave it out.")


def is_sharded(model: nn.Module) -> bool:
    """Whether its weights are divided."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def _layer_classes(model: nn.Module) -> list[str]:
    """The classes of the layers of a deep network, by name: of the members of its outermost lists of modules."""
    layers = _layers(model)
    blocks = [layer for layer in layers if any(True for _ in layer.children())]
    return sorted({type(layer).__name__ for layer in blocks or layers})


def _layers(model: nn.Module) -> list[nn.Module]:
    if isinstance(model, nn.ModuleList | nn.Sequential):
        return [layer for layer in model if any(True for _ in layer.parameters())]
    return [layer for child in model.children() for layer in _layers(child)]


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a divided network, whole and on the CPU, in every process."""
    from torch.distributed.tensor import DTensor

    tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu()
        for name, value in tensors.items()
    }


def save_shards(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors, each process its parts; returns the path within the folder. Earlier ones stay as they are."""
    from torch.distributed.checkpoint.state_dict_saver import save

    path = Path(FOLDER) / name
    save(dict(tensors), checkpoint_id=str(folder / path))
    return str(path)


def load_shards(path: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `save_shards` wrote, by any number of processes, divided over those that are there now.

    Args:
        path: what it returned, in its folder.
        like: a divided network's state dict: what has the name and shape of one of its tensors is divided as that is.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = FileSystemReader(str(path))
    tensors = {}
    for name, metadata in reader.read_metadata().state_dict_metadata.items():
        if not isinstance(metadata, TensorStorageMetadata):
            continue
        template = like.get(_name_in_network(name))
        if template is not None and template.shape == metadata.size:
            tensors[name] = torch.zeros_like(template, dtype=metadata.properties.dtype)
        else:
            tensors[name] = torch.zeros(metadata.size, dtype=metadata.properties.dtype)
    load(tensors, storage_reader=reader)
    return tensors


def _name_in_network(name: str) -> str:
    """`student.head.weight` and `optimizer.exp_avg.head.weight` are about `head.weight`."""
    prefix, _, rest = name.partition(".")
    return rest.partition(".")[2] if prefix == "optimizer" else rest


def remove_shards(folder: Path, keep: str) -> None:
    """Remove all that were written but one; its name is what `save_shards` returned."""
    for path in (folder / FOLDER).iterdir():
        if path != folder / keep:
            shutil.rmtree(path, ignore_errors=True)
