"""The mean of every branch over samples, which the `mean` ablation puts in its place."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from shoal.batches import Batch, batches, call, device_of
from shoal.blocks import BlockGraph
from shoal.blocks.input_variants import more_samples
from shoal.blocks.interception import intercept_additions
from shoal.errors import ModelRaisedError
from shoal.preserve import evaluating


def branch_means(graph: BlockGraph, loader: Iterable[Any]) -> dict[tuple[str, int], Tensor]:
    """The mean of each branch over all samples, shape (1, ...), in float64, by (block path, index of the unit).

    Positions of padding do not count; where all samples are padded the mean is 0. A branch whose shape changes between
    samples (texts of different lengths) has no mean and is left out; so is one that does not keep samples apart on its
    first axis (positions first, windows of an image).
    """
    blocks = [block for block in graph.chain if block.units and block.path]
    sums: dict[tuple[str, int], Tensor] = {}
    counts: dict[tuple[str, int], Tensor] = {}
    uneven: set[tuple[str, int]] = set()
    probing = False

    def add(path: str, unit: int, stream: Tensor, branch: Tensor) -> None:
        key = (path, unit)
        if branch.shape[:1] != (batch.size,):
            uneven.add(key)
        if key in uneven or probing:
            return
        weights = _weights(batch, branch)
        total = (branch.double() * weights).sum(0, keepdim=True)
        if key in sums and sums[key].shape != total.shape:
            uneven.add(key)
            return
        sums[key] = sums[key] + total if key in sums else total
        count = weights.sum(0, keepdim=True)
        counts[key] = counts[key] + count if key in counts else count

    with evaluating(graph.model), intercept_additions(graph.model, blocks, add), torch.no_grad():
        stream = batches(loader, device_of(graph.model))
        for number, batch in enumerate(stream):
            call(graph.model, batch)
            if number == 0:  # as many positions as samples look like samples: one sample more tells them apart
                batch, probing = more_samples(batch), True
                with suppress(ModelRaisedError):
                    call(graph.model, batch)
                probing = False
    return {key: total / counts[key].clamp(min=1) for key, total in sums.items() if key not in uneven}


def _weights(batch: Batch, branch: Tensor) -> Tensor:
    """1 for what counts and 0 for padding, (samples, 1, ...) or (samples, positions, 1, ...)."""
    counted = batch.counted(branch.shape[:2]) if branch.dim() > 2 else None
    if counted is None:
        return branch.new_ones((len(branch), *(1 for _ in branch.shape[1:])), dtype=torch.float64)
    return counted.double().reshape(*counted.shape, *(1 for _ in branch.shape[2:]))
