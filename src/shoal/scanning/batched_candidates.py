"""Several candidates in one forward: each removed block adds a copy of the mini-batch to the batch axis.

At block k the batch holds the samples of the unchanged network, followed by those of every candidate before k; the
block runs on all of them at once, then its own candidate is appended. This pays where one mini-batch does not fill the
device; results agree with single runs to rounding, since kernels may choose other algorithms for other batch sizes. It
does not work for a network whose samples depend on each other (a mean over the batch, a value passed around the
stream): a trial on a few samples decides.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from shoal.batches import Batch
from shoal.blocks import BlockGraph
from shoal.blocks.prefix_cache import Forward, PrefixCache, same_tensors
from shoal.blocks.template import TensorRef, tensor_refs
from shoal.errors import ModelRaisedError, OutOfMemoryError, UsageError
from shoal.outputs import read_outputs, rebuilt, shown

# Samples of the trial.
_SAMPLES = 2


def stackable(graph: BlockGraph, path: str) -> bool:
    """Whether a block takes one tensor and returns one, so that the batch axis may grow inside it."""
    call = graph.calls[path]
    plain = len(call.args) == 1 and isinstance(call.args[0], TensorRef) and not tensor_refs(call.kwargs)
    return plain and isinstance(call.output, TensorRef)


def stacking_agrees(
    graph: BlockGraph, base: Mapping[str, Forward], batch: Batch, paths: list[str], max_shared: int
) -> bool:
    """Whether candidates that share a forward give the results of single runs, on a few samples of a mini-batch."""
    prefix = PrefixCache(graph, base)
    prefix.record(batch.take(_SAMPLES))
    try:
        return all(
            same_tensors(_listed(output), _listed(prefix.run_without(path, graph.shortcut_modules[path])), exact=False)
            for path, output in run_batched(graph, prefix, paths, max_shared)
        )
    except (ModelRaisedError, UsageError):
        return False


def _listed(output: Any) -> list[Tensor]:
    return list(read_outputs(output).tensors.values())


def run_batched(graph: BlockGraph, prefix: PrefixCache, paths: list[str], max_shared: int) -> Iterator[tuple[str, Any]]:
    """The outputs with each block of `paths` removed alone, up to `max_shared` of them in one forward.

    Where memory does not suffice fewer share one. Blocks that cannot share a forward are left out; the caller runs them
    alone.
    """
    if not all(stackable(graph, path) for path in prefix.order if path in graph.calls):
        return
    ordered = [path for path in prefix.order if path in paths]
    start = 0
    while start < len(ordered) and max_shared > 0:
        group = ordered[start : start + max_shared]
        outputs: list[Any] | None = None
        with suppress(OutOfMemoryError):
            outputs = _run_group(graph, prefix, group)
        if outputs is None:
            max_shared = len(group) // 2
            continue
        yield from zip(group, outputs, strict=True)
        start += len(group)


def _run_group(graph: BlockGraph, prefix: PrefixCache, group: list[str]) -> list[Any]:
    size = prefix.batch.size if prefix.batch is not None else 0
    forwards: dict[nn.Module, Forward] = {}
    for path in group:
        module = prefix.model.get_submodule(path)
        forwards[module] = _forking(module.forward, graph.shortcut_modules[path], size)
    output = prefix.run_from(group[0], forwards)
    rows = size * (len(group) + 1)
    for name, tensor in read_outputs(output).tensors.items():
        if tensor.dim() == 0 or len(tensor) != rows:
            raise UsageError(
                f"{shown(name)} of the network has no row for each sample, so that removals cannot share a forward",
                "Leave out --stack (ScanConfig.stack).",
            )
    return [_rows(output, size * number, size) for number in range(1, len(group) + 1)]


def _rows(output: Any, start: int, size: int) -> Any:
    return rebuilt(output, lambda tensor: tensor[start : start + size])


def _forking(forward: Forward, shortcut: nn.Module, size: int) -> Forward:
    """The block on all samples, followed by its shortcut on those of the unchanged network."""

    def run(x: Tensor) -> Tensor:
        return torch.cat([forward(x), shortcut.forward(x[:size])])

    return run
