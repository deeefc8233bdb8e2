"""A network that loses blocks while it is trained: each goes down to its shortcut, and is kept aside."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from shoal.blocks import BlockGraph
from shoal.epsilon.attach import drop_gates_, gates_of
from shoal.epsilon.gate import Gate
from shoal.preserve import copied
from shoal.surgery import remove_blocks_


class PrunableNetwork:
    """The network in training and the blocks it has lost.

    Args:
        anatomy: of the whole network, with its gates on.
    """

    def __init__(self, anatomy: BlockGraph) -> None:
        self.anatomy, self.model = anatomy, anatomy.model
        self.gone: dict[str, nn.Module] = {}

    @property
    def alive(self) -> list[str]:
        """Paths of the blocks that can be lost and were not yet, in order."""
        return [block.path for block in self.anatomy.chain.removable if block.path not in self.gone]

    def gates(self) -> list[Gate]:
        """The gates of the blocks that are still there."""
        return [gate for gate in gates_of(self.model) if gate.block not in self.gone]

    def holder(self, path: str) -> Callable[[str], nn.Module]:
        """Gives the modules of a block, in the network or kept aside, by their paths in the whole network."""
        gone = self.gone.get(path)
        if gone is None:
            return self.model.get_submodule
        return lambda inner: gone.get_submodule(inner.removeprefix(path).lstrip("."))

    def take_out(self, paths: Sequence[str]) -> None:
        """Take blocks out of the network in training; their shortcuts stay, and go on being trained."""
        for path in paths:
            block = self.model.get_submodule(path)
            remove_blocks_(self.anatomy, [path])
            self.gone[path] = block

    def whole(self) -> nn.Module:
        """A copy of the whole network: lost blocks are back in place, behind gates that are frozen shut.

        All other gates are taken off, so that their branches are always added.
        """
        whole = copied(self.model)
        for path, block in self.gone.items():
            whole.set_submodule(path, copied(block), strict=True)
        for gate in gates_of(whole):
            gate.mode = "shut"
        drop_gates_(whole, set(self.gone))
        return whole

    def plain(self) -> nn.Module:
        """A copy of the network as it is now, without any gate."""
        network = copied(self.model)
        drop_gates_(network, ())
        return network

    def tensors(self) -> dict[str, Tensor]:
        """Everything that training changes: `model.NAME`, and `gone.PATH.NAME` for the blocks kept aside."""
        found = {f"model.{name}": tensor for name, tensor in _tensors(self.model).items()}
        for path, block in self.gone.items():
            found |= {f"gone.{path}.{name}": tensor for name, tensor in _tensors(block).items()}
        return found

    def restore(self, tensors: dict[str, Tensor], gone: Sequence[str]) -> None:
        """Take the same blocks out of a fresh network and load what `tensors` returned."""
        self.take_out([path for path in gone if path not in self.gone])
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                tensor.copy_(tensors[name])


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
