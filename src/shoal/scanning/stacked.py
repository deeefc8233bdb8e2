"""Several candidates in one forward: each removed block adds a copy of the mini-batch to the batch axis.

At block k the batch holds the whole network's samples and, behind them, those of every candidate before k; the block
runs on all of them at once, and its own candidate joins behind. It pays where one mini-batch does not fill the device;
results agree with single runs to rounding, since kernels may choose other algorithms for other batch sizes.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from shoal.batches import logits_of
from shoal.blocks import Anatomy
from shoal.blocks.prefix import Forward, Prefix
from shoal.blocks.template import Ref, refs


def stackable(anatomy: Anatomy, path: str) -> bool:
    """Whether a block takes one tensor and returns one, so that the batch axis may grow inside it."""
    call = anatomy.calls[path]
    plain = len(call.args) == 1 and isinstance(call.args[0], Ref) and not refs(call.kwargs)
    return plain and isinstance(call.output, Ref)


def run_stacked(anatomy: Anatomy, prefix: Prefix, paths: list[str], most: int) -> Iterator[tuple[str, Any]]:
    """The outputs with each block of `paths` taken out alone, up to `most` of them in one forward.

    Blocks that cannot share a forward are left out; the caller runs them alone.
    """
    if not all(stackable(anatomy, path) for path in prefix.order if path in anatomy.calls):
        return
    ordered = [path for path in prefix.order if path in paths]
    for start in range(0, len(ordered), most):
        group = ordered[start : start + most]
        yield from zip(group, _run_group(anatomy, prefix, group), strict=True)


def _run_group(anatomy: Anatomy, prefix: Prefix, group: list[str]) -> list[Tensor]:
    size = prefix.batch.size if prefix.batch is not None else 0
    forwards: dict[nn.Module, Forward] = {}
    for path in group:
        module = prefix.model.get_submodule(path)
        forwards[module] = _forking(module.forward, anatomy.remainders[path], size)
    output = prefix.run(group[0], forwards)
    parts = logits_of(output).split(size)
    return list(parts[1:])


def _forking(forward: Forward, remainder: nn.Module, size: int) -> Forward:
    """The block on every sample, and behind them its remainder on the whole network's own samples."""

    def run(x: Tensor) -> Tensor:
        return torch.cat([forward(x), remainder(x[:size])])

    return run
