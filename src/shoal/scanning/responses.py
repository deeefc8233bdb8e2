"""The size of each branch relative to the stream it is added to: the epsilon criterion, from one pass.

Source: Yu, Yu, Ramalingam 2018, arXiv:1804.01661, Sec. 3 (a block is discarded if every response is below epsilon).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from shoal.batches import batches, call, device_of
from shoal.blocks import BlockGraph
from shoal.blocks.interception import intercept_additions
from shoal.preserve import evaluating


@dataclass
class Response:
    """Of one block over all data and units: the largest |F| and |x|, and the sums for their means."""

    largest_branch: float = 0.0
    largest_stream: float = 0.0
    sum_branch: float = 0.0
    sum_stream: float = 0.0
    count: int = 0

    def add(self, stream: Tensor, branch: Tensor) -> None:
        """Add one residual addition."""
        self.largest_branch = max(self.largest_branch, float(branch.abs().max()))
        self.largest_stream = max(self.largest_stream, float(stream.abs().max()))
        self.sum_branch += float(branch.abs().double().sum())
        self.sum_stream += float(stream.abs().double().sum())
        self.count += branch.numel()

    @property
    def ratio(self) -> float:
        """Largest |F| over the mean |x| of the stream; 0 for a branch that is zero everywhere."""
        if self.largest_branch == 0:
            return 0.0
        mean = self.sum_stream / max(self.count, 1)
        return self.largest_branch / mean if mean > 0 else float("inf")


def responses(graph: BlockGraph, loader: Iterable[Any]) -> dict[str, Response]:
    """The response of every block with a residual addition, over all mini-batches of `loader`."""
    blocks = [block for block in graph.chain if block.units and block.path]
    by_path = {block.path: Response() for block in blocks}

    def add(path: str, unit: int, stream: Tensor, branch: Tensor) -> None:
        by_path[path].add(stream, branch)

    with evaluating(graph.model), intercept_additions(graph.model, blocks, add):
        for batch in batches(loader, device_of(graph.model)):
            call(graph.model, batch)
    return by_path
