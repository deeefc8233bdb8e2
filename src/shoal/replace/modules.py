"""From plain data to the module that stands in for a span, so that a saved plan can build it again."""

from typing import Any

import torch
from torch import Tensor, nn

from shoal.errors import UsageError
from shoal.plan import Replacement
from shoal.replace.kinds import Solution, kind_of
from shoal.replace.post_activation import post_activation_module
from shoal.replace.students.build import student_of


class AffineReplacement(nn.Sequential):
    """tail(branch(x)); what else a block of the span was given (masks, position embeddings) is not needed."""

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Tensor:  # type: ignore[override]
        """The map, then the tail."""
        return super().forward(x)


class PassThrough(nn.Identity):
    """Hands the stream through where a module of a span has been."""

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Tensor:  # type: ignore[override]
        """What enters."""
        return x


class ResidualReplacement(nn.Module):
    """tail(x + branch(x)): a stand-in that keeps the shortcut of the span."""

    def __init__(self, branch: nn.Module, tail: nn.Module) -> None:
        super().__init__()
        self.branch, self.tail = branch, tail

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Tensor:
        """The shortcut plus the branch, then the tail."""
        return self.tail(x + self.branch(x))


def with_shortcut(stand_in: Replacement) -> Replacement:
    """The same function, written as the shortcut plus the rest: it trains better later.

    Raises:
        UsageError: the span changes the shape, so there is no shortcut to keep; or there is no rest.
    """
    if stand_in.kind == "identity":
        raise UsageError("an identity beside a shortcut would be the input twice", "It is the shortcut already.")
    if stand_in.stride != 1 or stand_in.in_channels != stand_in.out_channels:
        raise UsageError(
            f"a stand-in from {stand_in.in_channels} to {stand_in.out_channels} channels at stride {stand_in.stride}"
            " has no shortcut",
            "Only a span that keeps its shape can keep it.",
        )
    return stand_in.model_copy(update={"shortcut": True})


def build_replacement(stand_in: Replacement, like: Tensor, original: nn.Module | None = None) -> nn.Module:
    """The module for a stand-in, untrained, in the dtype and on the device of `like`; no random state moves.

    Args:
        stand_in: as plain data.
        like: any parameter of the network.
        original: the network before any change; a student is made of copies of its blocks.

    Raises:
        UsageError: a student without the original.
        SurgeryError: an original without these blocks.
    """
    if stand_in.student:
        if original is None:
            raise UsageError("a student is made of blocks of the original, and there is none", "Give the original.")
        return student_of(stand_in, original).to(like.device, like.dtype)
    with torch.random.fork_rng(devices=[]):  # the layers are made on the CPU
        branch, tail = kind_of(stand_in).make(stand_in), post_activation_module(stand_in.tail)
        made: nn.Module = ResidualReplacement(branch, tail) if stand_in.shortcut else AffineReplacement(branch, tail)
        return made.to(like.device, like.dtype).eval()


def load_solution_(module: nn.Module, solution: Solution) -> None:
    """Write a fitted solution into a built stand-in."""
    branch = module.branch if isinstance(module, ResidualReplacement) else module[0]  # type: ignore[index]
    own = branch.state_dict()
    branch.load_state_dict({name: solution.state[name].reshape(own[name].shape) for name in own})
