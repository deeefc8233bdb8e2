"""From plain data and the original's blocks to a student: copies in a row, some with fewer inner features."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from shoal.errors import SurgeryError
from shoal.plan import Inner, Replacement, TokenMap
from shoal.replace.attention_map import AttentionMap
from shoal.replace.students.channel_groups import ChannelGroup, importance


class Student(nn.Sequential):
    """Blocks in a row; what else a block of the span was given (masks, position embeddings) goes to each."""

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Tensor:  # type: ignore[override]
        """One after the other."""
        for block in self:
            x = block(x, *others, **named)
        return x


def student_of(stand_in: Replacement, original: nn.Module) -> nn.Module:
    """The student that a stand-in describes, untrained, in eval mode: as good as slices of the original make it.

    Args:
        stand_in: of kind 'block' or 'narrow'; of one that keeps a block it is that block.
        original: the network before any change; its blocks are copied. Of its weights the features to keep depend, so
            a student that is filled with trained weights may come from any weights.

    Raises:
        SurgeryError: the network has no such blocks.
    """
    try:
        blocks = {path: copy.deepcopy(original.get_submodule(path)) for path in stand_in.copies}
        for narrowed in stand_in.inner:
            _narrow_(blocks, original, narrowed)
        if stand_in.attention is not None:
            _map_tokens_(blocks, stand_in.attention, stand_in.in_channels)
    except (AttributeError, IndexError, RuntimeError) as error:
        raise SurgeryError(
            f"a student of {', '.join(stand_in.copies)} cannot be made of this network: {error}",
            "Give the original network the plan was made from.",
        ) from error
    if stand_in.keeps_block:
        return blocks[stand_in.copies[0]].eval()
    return Student(*(blocks[path] for path in stand_in.copies)).eval()


def _map_tokens_(blocks: dict[str, nn.Module], token_map: TokenMap, width: int) -> None:
    """Put a linear map of zeros in the place of a module, in place."""
    [(path, block)] = blocks.items()
    inside = token_map.module.removeprefix(f"{path}.")
    block.set_submodule(inside, AttentionMap(token_map, width, block.get_submodule(inside)), strict=True)


def _narrow_(blocks: dict[str, nn.Module], original: nn.Module, inner: Inner) -> None:
    """Keep the most important inner features of a group, in place."""
    writers, keepers, readers = (
        [_inside(blocks, path) for path in paths] for paths in (inner.writers, inner.keepers, inner.readers)
    )
    group = ChannelGroup(inner.writers, inner.keepers, inner.readers, inner.width)
    chosen = importance(original, group).topk(inner.width).indices.sort().values
    for layer in writers:
        _keep_outputs_(layer, chosen)
    for layer in keepers:
        _keep_alone_(layer, chosen)
    for layer in readers:
        _keep_inputs_(layer, chosen)


def _inside(blocks: dict[str, nn.Module], path: str) -> Any:
    """The copy of the layer that is at `path` in the original."""
    for block, module in blocks.items():
        if path.startswith(f"{block}."):
            return module.get_submodule(path.removeprefix(f"{block}."))
    raise AttributeError(f"'{path}' is in none of the blocks")


def _keep_outputs_(layer: Any, chosen: Tensor) -> None:
    _keep_(layer, ("weight", "bias"), chosen)
    name = "out_channels" if isinstance(layer, nn.Conv2d) else "out_features"
    setattr(layer, name, len(chosen))


def _keep_alone_(layer: Any, chosen: Tensor) -> None:
    _keep_(layer, ("weight", "bias", "running_mean", "running_var"), chosen)
    if isinstance(layer, nn.Conv2d):
        layer.in_channels = layer.out_channels = layer.groups = len(chosen)
    else:
        layer.num_features = len(chosen)


def _keep_inputs_(layer: Any, chosen: Tensor) -> None:
    kept = layer.weight.detach().index_select(1, chosen.to(layer.weight.device)).clone()
    layer.weight = nn.Parameter(kept, requires_grad=layer.weight.requires_grad)
    name = "in_channels" if isinstance(layer, nn.Conv2d) else "in_features"
    setattr(layer, name, len(chosen))


def _keep_(layer: Any, names: tuple[str, ...], chosen: Tensor) -> None:
    """Only these rows of each of its tensors that are there."""
    for name in names:
        tensor = getattr(layer, name, None)
        if not isinstance(tensor, torch.Tensor):
            continue
        kept = tensor.detach()[chosen.to(tensor.device)].clone()
        setattr(
            layer, name, nn.Parameter(kept, requires_grad=tensor.requires_grad) if name in layer._parameters else kept
        )
