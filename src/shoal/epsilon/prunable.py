"""A network that loses blocks while it is trained: each goes down to its shortcut, and is kept aside."""

from collections.abc import Callable, Sequence, Set

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


def decayed_parameters(anatomy: BlockGraph) -> set[nn.Parameter]:
    """All kernels and matrices, and the scales, shifts and biases that end a residual branch.

    Args:
        anatomy: of the network that is trained.
    """
    found = {parameter for parameter in anatomy.model.parameters() if parameter.dim() >= 2}
    for block in anatomy.chain.removable:
        for unit in block.units:
            found.update(ending_parameters(anatomy.model, unit.branch))
    return found


def ending_parameters(model: nn.Module, branch: tuple[str, ...]) -> list[nn.Parameter]:
    """The parameters behind the last kernel of a branch, and that kernel with its bias, in no particular order.

    Args:
        model: the network.
        branch: paths of the modules with parameters in a branch, in the order they ran.
    """
    found: list[nn.Parameter] = []
    for path in reversed(branch):
        own = list(model.get_submodule(path).parameters())
        found.extend(own)
        if any(parameter.dim() >= 2 for parameter in own):
            break
    return found


def largest_ending_weight(find: Callable[[str], nn.Module], branch: tuple[str, ...]) -> float:
    """The largest magnitude that keeps a branch alive: the smallest over its last layers of their largest weight.

    A product is zero as soon as one factor is: a branch whose last convolution or last batch norm is zero is dead.

    Args:
        find: gives the module at a path.
        branch: paths of the modules with parameters in a branch, in the order they ran.
    """
    largest = []
    for path in reversed(branch):
        own = list(find(path).parameters())
        if own:
            largest.append(max(float(parameter.detach().abs().max()) for parameter in own))
        if any(parameter.dim() >= 2 for parameter in own):
            break
    return min(largest, default=0.0)


_MOMENTUM = "momentum_buffer"


class PrunableSGD:
    """SGD with momentum; decay reaches the matrices, and whatever ends a branch.

    Args:
        pair: the network, with its side head as the attribute `side`.
        decayed: the parameters of the network that decay; of the side head all matrices do.
        momentum: as in torch's SGD.
        nesterov: likewise.
    """

    def __init__(self, pair: nn.Module, decayed: Set[nn.Parameter], momentum: float, *, nesterov: bool) -> None:
        self.pair = pair
        known = set(pair.get_submodule("network").parameters())
        reached = [p for p in pair.parameters() if p in decayed or (p not in known and p.dim() >= 2)]
        others = [p for p in pair.parameters() if not any(p is one for one in reached)]
        groups = [{"params": part, "decays": flag} for part, flag in ((reached, True), (others, False)) if part]
        self.sgd = torch.optim.SGD(groups, lr=0.1, momentum=momentum, nesterov=nesterov)

    def step(self, rate: float, decay: float) -> None:
        """One step on the gradients that are there, which are used up."""
        for group in self.sgd.param_groups:
            group["lr"], group["weight_decay"] = rate, decay if group["decays"] else 0.0
        self.sgd.step()
        self.sgd.zero_grad(set_to_none=True)

    def forget_missing(self) -> None:
        """Drop parameters, and their momentum, that the network no longer has."""
        there = set(self.pair.parameters())
        for group in self.sgd.param_groups:
            group["params"] = [parameter for parameter in group["params"] if parameter in there]
        for parameter in [one for one in self.sgd.state if one not in there]:
            del self.sgd.state[parameter]

    def tensors(self) -> dict[str, Tensor]:
        """The momentum by name of the parameter."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.pair.named_parameters()}
        return {
            f"momentum.{names[parameter]}": state[_MOMENTUM]
            for parameter, state in self.sgd.state.items()
            if state.get(_MOMENTUM) is not None
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Load what `tensors` returned."""
        for name, parameter in self.pair.named_parameters():
            kept = tensors.get(f"momentum.{name}")
            if kept is not None:
                self.sgd.state[parameter][_MOMENTUM] = kept.to(parameter).clone()
