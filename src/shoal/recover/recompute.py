"""Blocks of a network computed once more in the backward pass, so that nothing inside them is kept until then.

The gradient checkpointing of transformers asks for training mode, in which students are not. Gradients are the same to
the bit; a step takes about a third longer, and memory is that of the streams between blocks and of one block.

Source: Chen et al. 2016, arXiv:1604.06174; done by torch.utils.checkpoint.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from shoal.batches import Batch
from shoal.blocks import BlockGraph, analyze
from shoal.errors import ShoalError, UsageError
from shoal.preserve import copied, patched
from shoal.recover.trainable import match_dtype
from shoal.replace import build_segments
from shoal.replace.kv_cache import is_kv_cache, without_kv_cache

_BatchNorm = nn.modules.batchnorm._BatchNorm


def recomputable_blocks(model: nn.Module, example: Batch) -> list[str]:
    """The paths of the blocks that may run twice in a step, in order.

    Not those with batch norms, which would take in their statistics twice, and none whose input is overwritten.

    Raises:
        UsageError: there is no such block.
    """
    try:
        graph = analyze(copied(model).eval(), match_dtype(model, example).take(2))
        blocks = [segment.path for segment in build_segments(graph).segments if segment.residual]
        paths = [path for path in blocks if _may_run_twice(graph, path)]
        reason = f"none of its {len(blocks)} blocks may run twice in a step" if blocks else "it has no blocks"
    except ShoalError as error:
        paths, reason = [], str(error)
    if not paths:
        raise UsageError(
            f"checkpointing recomputes whole blocks of a network, and of this one it cannot: {reason}",
            "Leave it out, and take mini-batches in parts (accumulate) to save memory.",
        )
    return paths


def _may_run_twice(graph: BlockGraph, path: str) -> bool:
    norms = any(isinstance(module, _BatchNorm) for module in graph.model.get_submodule(path).modules())
    call = graph.calls[path]
    overwritten = any(graph.trace.last_change.get(value, -1) >= call.start for value in call.inputs)
    return not norms and not overwritten


@contextmanager
def recomputing(model: nn.Module, paths: Sequence[str]) -> Iterator[None]:
    """Within the context the blocks at these paths keep nothing for the backward pass but their inputs.

    A cache of keys and values that a block gets would grow each time it runs: no caches are made meanwhile, and a block
    that is handed one runs as usual.
    """
    if not paths:
        yield
        return
    blocks = [model.get_submodule(path) for path in paths]
    with without_kv_cache(model), patched({block: partial(_recomputed, block.forward) for block in blocks}):
        yield


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled() or any(map(is_kv_cache, (*args, *kwargs.values()))):
        return forward(*args, **kwargs)
    return checkpoint(partial(forward, **kwargs), *args, use_reentrant=False)
