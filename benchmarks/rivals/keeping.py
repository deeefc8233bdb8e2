"""Keep a method's network in a folder and load it again: safetensors and a plan, nothing unpickled."""

import copy
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rivals.ground import Ground
from rivals.made import Made
from shoal.errors import UsageError
from shoal.preserve import evaluating
from shoal.store import load
from shoal.store.folder import PLAN, WEIGHTS
from shoal.store.save import save, save_weights

_SMALL = "small.safetensors"


def keep(made: Made, folder: Path) -> None:
    """Write the network down."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (PLAN, _SMALL):
        (folder / name).unlink(missing_ok=True)
    if made.plan is not None:
        save(folder, made.network, made.plan)
    else:
        save_weights(made.network, folder / (_SMALL if made.small else WEIGHTS))


def reload(ground: Ground, folder: Path) -> nn.Module:
    """The network that was kept."""
    if (folder / PLAN).exists():
        return load(folder, model=copy.deepcopy(ground.model))
    if is_small(folder):
        if ground.small is None:
            raise UsageError("the folder holds the small network, and none is configured", "Give --small.")
        network = copy.deepcopy(ground.small)
        network.load_state_dict(load_file(str(folder / _SMALL)))
        return network.eval()
    return reshaped_(copy.deepcopy(ground.model), load_file(str(folder / WEIGHTS))).eval()


def is_small(folder: Path) -> bool:
    """Whether the network that was kept is the small one."""
    return (folder / _SMALL).exists()


def reshaped_(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """The model with these tensors in the place of its own, whatever their shapes."""
    for name, tensor in state.items():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(tensor)
        else:
            module._buffers[leaf] = tensor
    for module in model.modules():
        _renumber(module)
    return model


def _renumber(module: nn.Module) -> None:
    """The counts of channels that a layer remembers, as its weights have them."""
    if isinstance(module, nn.Conv2d):
        if module.groups == module.in_channels == module.out_channels:
            module.groups = len(module.weight)
        module.out_channels, module.in_channels = len(module.weight), module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
        module.num_features = len(module.running_mean)


def same(ground: Ground, first: nn.Module, second: nn.Module) -> bool:
    """Whether two networks give bitwise the same outputs on the timed mini-batch."""
    args, kwargs = ground.timed.args, ground.timed.kwargs
    with evaluating(first), evaluating(second):
        return torch.equal(first(*args, **kwargs), second(*args, **kwargs))
