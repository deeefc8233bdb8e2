"""Build the module of a replacement from plain data, so that a saved plan can be rebuilt."""

from typing import Any

import torch
from torch import Tensor, nn

from shoal.errors import UsageError
from shoal.plan import Replacement
from shoal.replace.kinds import Solution, replacement_type
from shoal.replace.post_activation import post_activation_module
from shoal.replace.students.build import student_of


class AffineReplacement(nn.Sequential):
    """tail(branch(x)); other inputs of the block (masks, position embeddings) are ignored."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """The map, then the tail."""
        return super().forward(x)


class PassThrough(nn.Identity):
    """Returns the stream, in place of the other modules of a replaced span."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """The input."""
        return x


class ResidualReplacement(nn.Module):
    """tail(x + branch(x)): a replacement that keeps the shortcut of the span."""

    def __init__(self, branch: nn.Module, tail: nn.Module) -> None:
        super().__init__()
        self.branch, self.tail = branch, tail

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The shortcut plus the branch, then the tail."""
        return self.tail(x + self.branch(x))


def with_shortcut(replacement: Replacement) -> Replacement:
    """The same function, written as the shortcut plus a residual: it trains better later.

    Raises:
        UsageError: the span changes the shape, so there is no shortcut to keep; or there is no residual.
    """
    if replacement.kind == "identity":
        raise UsageError("an identity with a shortcut would be the input twice", "It is the shortcut already.")
    if replacement.stride != 1 or replacement.in_channels != replacement.out_channels:
        raise UsageError(
            f"a replacement from {replacement.in_channels} to {replacement.out_channels} channels at"
            f" stride {replacement.stride}"
            " has no shortcut",
            "Only a span that keeps its shape has one.",
        )
    return replacement.model_copy(update={"shortcut": True})


def build_replacement(replacement: Replacement, like: Tensor, original: nn.Module | None = None) -> nn.Module:
    """The module of a replacement, unfitted, in the dtype and on the device of `like`; no random state is consumed.

    Args:
        replacement: as plain data.
        like: any parameter of the network.
        original: the unchanged network; a student is made of copies of its blocks.

    Raises:
        UsageError: a student without the original.
        SurgeryError: an original without these blocks.
    """
    if replacement.student:
        if original is None:
            raise UsageError("a student is made of blocks of the original network, which is missing", "Pass original=.")
        return student_of(replacement, original).to(like.device, like.dtype)
    with torch.random.fork_rng(devices=[]):  # the layers are made on the CPU
        branch, tail = replacement_type(replacement).build(replacement), post_activation_module(replacement.tail)
        module: nn.Module = (
            ResidualReplacement(branch, tail) if replacement.shortcut else AffineReplacement(branch, tail)
        )
        return module.to(like.device, like.dtype).eval()


def load_solution_(module: nn.Module, solution: Solution) -> None:
    """Write a fitted solution into the module of a replacement."""
    branch = module.branch if isinstance(module, ResidualReplacement) else module[0]  # type: ignore[index]
    state = branch.state_dict()
    branch.load_state_dict({name: solution.state[name].reshape(state[name].shape) for name in state})
