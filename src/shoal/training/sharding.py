"""Networks whose weights are divided over processes (FSDP2), and checkpoints that each process writes its part of.

Torch's distributed checkpoints may be read by another number of processes: each takes the part that it needs.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

FOLDER = "shards"


def shard_(model: nn.Module, device: torch.device, processes: int) -> nn.Module:
    """Divide the weights over all processes, layer by layer: each is whole only while it runs; in place."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes,))
    for module in (*_layers(model), model):
        # The outermost one would stay whole after a forward without gradients, and its parts would not be what learns.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    return model


def is_sharded(model: nn.Module) -> bool:
    """Whether its weights are divided."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def _layers(model: nn.Module) -> list[nn.Module]:
    """The members of the outermost lists of modules, where the layers of deep networks are."""
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
