"""Which parameters weight decay must reach so that a closed branch dies.

A closed gate leaves the decay alone with the branch. If the branch ends in a convolution, its response shrinks with
that weight. If a batch norm or a LayerScale comes behind it, the response follows their scale and shift, whatever
happens to the convolution: these must decay too.
"""

from collections.abc import Callable

from torch import nn

from shoal.blocks import BlockGraph


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
