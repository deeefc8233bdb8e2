"""Watch a network run: what enters every block, and the sum of its last addition."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from shoal.blocks import Anatomy
from shoal.blocks.taps import tapped


class Recording:
    """Of the last mini-batch: `inputs[path]` entering each block, `sums[path]` of its last addition."""

    def __init__(self) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}


@contextmanager
def recording(anatomy: Anatomy, paths: Sequence[str]) -> Iterator[Recording]:
    """While the context lasts, every run of the network fills the recording; nothing is kept from run to run."""
    found = Recording()
    blocks = [anatomy.chain[path] for path in paths]
    last = {block.path: len(block.units) - 1 for block in blocks}

    def look(path: str, unit: int, stream: Tensor, branch: Tensor) -> None:
        if unit == last[path]:
            found.sums[path] = stream + branch

    def entering(path: str) -> Any:
        copied = _overwritten(anatomy, path)

        def hook(module: nn.Module, args: Any) -> None:
            found.inputs[path] = args[0].clone() if copied else args[0]

        return hook

    handles = [anatomy.model.get_submodule(path).register_forward_pre_hook(entering(path)) for path in paths]
    try:
        with tapped(anatomy.model, blocks, look):
            yield found
    finally:
        for handle in handles:
            handle.remove()


def _overwritten(anatomy: Anatomy, path: str) -> bool:
    """Whether what enters the block is changed in place later, by the block itself or behind it."""
    call = anatomy.calls[path]
    return any(set(call.inputs) & set(op.changed) for op in anatomy.trace.ops[call.start :])
