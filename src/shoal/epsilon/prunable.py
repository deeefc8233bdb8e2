"""A network that is pruned while it is trained, and its optimizer."""

import re
from collections.abc import Callable, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn

from shoal.blocks import BlockGraph
from shoal.epsilon.attach import drop_gates_, gates_of
from shoal.epsilon.gate import Gate
from shoal.preserve import copied
from shoal.surgery import remove_blocks_
from shoal.training.optim import ResumableOptimizer


class PrunableNetwork:
    """The network in training and the blocks pruned from it.

    Args:
        graph: of the whole network, with its gates on.
    """

    def __init__(self, graph: BlockGraph) -> None:
        self.graph, self.model = graph, graph.model
        self.removed: dict[str, nn.Module] = {}

    @property
    def alive(self) -> list[str]:
        """Paths of the blocks that can be pruned and were not yet, in order."""
        return [block.path for block in self.graph.chain.removable if block.path not in self.removed]

    def gates(self) -> list[Gate]:
        """The gates of the blocks that are still there."""
        return [gate for gate in gates_of(self.model) if gate.block not in self.removed]

    def holder(self, path: str) -> Callable[[str], nn.Module]:
        """A function that returns the modules of a block, in the network or kept aside, by their full paths."""
        removed = self.removed.get(path)
        if removed is None:
            return self.model.get_submodule
        return lambda inner: removed.get_submodule(inner.removeprefix(path).lstrip("."))

    def remove(self, paths: Sequence[str]) -> None:
        """Remove blocks from the network in training; their shortcuts stay, and are trained further."""
        for path in paths:
            block = self.model.get_submodule(path)
            remove_blocks_(self.graph, [path])
            self.removed[path] = block

    def with_frozen_gates(self) -> nn.Module:
        """A copy of the whole network: pruned blocks are back in place, behind gates that are frozen shut.

        All other gates are taken off, so that their branches are always added.
        """
        whole = copied(self.model)
        for path, block in self.removed.items():
            whole.set_submodule(path, copied(block), strict=True)
        for gate in gates_of(whole):
            gate.mode = "shut"
        drop_gates_(whole, set(self.removed))
        return whole

    def pruned(self) -> nn.Module:
        """A copy of the network as it is now, without any gate."""
        network = copied(self.model)
        drop_gates_(network, ())
        return network

    def tensors(self) -> dict[str, Tensor]:
        """Everything that training changes: `model.NAME`, and `gone.PATH.NAME` for the blocks kept aside."""
        tensors = {f"model.{name}": tensor for name, tensor in _tensors(self.model).items()}
        for path, block in self.removed.items():
            tensors |= {f"gone.{path}.{name}": tensor for name, tensor in _tensors(block).items()}
        return tensors

    def restore(self, tensors: dict[str, Tensor], removed: Sequence[str]) -> None:
        """Remove the same blocks from a fresh network and load what `tensors` returned."""
        self.remove([path for path in removed if path not in self.removed])
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                tensor.copy_(tensors[name])


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def decayed_parameters(graph: BlockGraph) -> set[nn.Parameter]:
    """All kernels and matrices, and the scales, shifts and biases that end a residual branch.

    Args:
        graph: of the network that is trained.
    """
    decayed = {parameter for parameter in graph.model.parameters() if parameter.dim() >= 2}
    for block in graph.chain.removable:
        for unit in block.units:
            decayed.update(ending_parameters(graph.model, unit.branch))
    return decayed


def ending_parameters(model: nn.Module, branch: tuple[str, ...]) -> list[nn.Parameter]:
    """The parameters behind the last kernel of a branch, and that kernel with its bias, in no particular order.

    Args:
        model: the network.
        branch: paths of the modules with parameters in a branch, in the order they ran.
    """
    parameters: list[nn.Parameter] = []
    for path in reversed(branch):
        layer = list(model.get_submodule(path).parameters())
        parameters.extend(layer)
        if any(parameter.dim() >= 2 for parameter in layer):
            break
    return parameters


def largest_ending_weight(find: Callable[[str], nn.Module], branch: tuple[str, ...]) -> float:
    """The largest magnitude that keeps a branch alive: the smallest over its last layers of their largest weight.

    A product is zero as soon as one factor is: a branch whose last convolution or last batch norm is zero is dead.

    Args:
        find: gives the module at a path.
        branch: paths of the modules with parameters in a branch, in the order they ran.
    """
    largest = []
    for path in reversed(branch):
        layer = list(find(path).parameters())
        if layer:
            largest.append(max(float(parameter.detach().abs().max()) for parameter in layer))
        if any(parameter.dim() >= 2 for parameter in layer):
            break
    return min(largest, default=0.0)


class PrunableSGD(ResumableOptimizer):
    """SGD with momentum; decay reaches the matrices, and whatever ends a branch.

    Args:
        supervised: the network as the attribute `network`, with its side head.
        decayed: the parameters of the network that decay; of the side head all matrices do.
        momentum: as in torch's SGD.
        nesterov: likewise.
    """

    def __init__(self, supervised: nn.Module, decayed: Set[nn.Parameter], momentum: float, *, nesterov: bool) -> None:
        in_network = set(supervised.get_submodule("network").parameters())
        of_side = {p for p in supervised.parameters() if p not in in_network and p.dim() >= 2}

        def factory(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
            return torch.optim.SGD(groups, lr=0.1, momentum=momentum, nesterov=nesterov)

        super().__init__(supervised, {*decayed, *of_side}, factory)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `tensors` returned, now or in version 0.1.0."""
        super().load({re.sub(r"^momentum\.", "optimizer.momentum_buffer.", name): t for name, t in tensors.items()})
