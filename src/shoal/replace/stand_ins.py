"""The modules that stand in for spans: built from plain data alone, so that a saved plan can build them again."""

from typing import Literal

import torch
from torch import Tensor, nn

from shoal.errors import UsageError
from shoal.plan import StandIn
from shoal.replace.spans import Span, tail_module

Kind = Literal["conv1", "conv3", "conv5", "lowrank1", "lowrank3"]


class ShortcutPlus(nn.Module):
    """x + branch(x), and the tail: a low-rank fit of the residual beside the shortcut."""

    def __init__(self, branch: nn.Module, tail: nn.Module) -> None:
        super().__init__()
        self.branch, self.tail = branch, tail

    def forward(self, x: Tensor) -> Tensor:
        """The shortcut plus the branch, then the tail."""
        return self.tail(x + self.branch(x))


def describe(span: Span, kind: Kind, rank: int | None = None) -> StandIn:
    """A stand-in of a kind for a span, as data.

    Raises:
        UsageError: a low-rank one without a rank that fits, or for a span that changes the shape.
    """
    if kind.startswith("lowrank"):
        if not span.keeps_shape:
            raise UsageError(
                f"{kind} for the span at '{span.paths[0]}', which changes the shape", "Use conv1 or conv3."
            )
        if rank is None or not 1 <= rank <= span.out_channels:
            raise UsageError(f"{kind} of rank {rank}, expected 1 to {span.out_channels}", "Give a rank.")
    return StandIn(
        layout=span.layout,
        in_channels=span.in_channels,
        out_channels=span.out_channels,
        kernel=int(kind[-1]),
        stride=span.stride,
        rank=rank if kind.startswith("lowrank") else None,
        tail=span.tail,
    )


def build(stand_in: StandIn, like: Tensor) -> nn.Module:
    """The module for a stand-in, untrained, in the dtype and on the device of `like`; no random state moves."""
    with torch.random.fork_rng(devices=[]):  # the layers are made on the CPU
        return _made(stand_in).to(like.device, like.dtype).eval()


def _made(stand_in: StandIn) -> nn.Module:
    tail = tail_module(stand_in.tail)
    if stand_in.rank is None:
        return nn.Sequential(_map(stand_in, stand_in.out_channels), tail)
    down = _map(stand_in, stand_in.rank, bias=False)
    up = _pointwise(stand_in, stand_in.rank, stand_in.out_channels)
    return ShortcutPlus(nn.Sequential(down, up), tail)


def _map(stand_in: StandIn, outputs: int, bias: bool = True) -> nn.Module:
    if stand_in.layout == "channels_last":
        return nn.Linear(stand_in.in_channels, outputs, bias=bias)
    k = stand_in.kernel
    return nn.Conv2d(stand_in.in_channels, outputs, k, stand_in.stride, k // 2, bias=bias)


def _pointwise(stand_in: StandIn, inputs: int, outputs: int) -> nn.Module:
    return nn.Linear(inputs, outputs) if stand_in.layout == "channels_last" else nn.Conv2d(inputs, outputs, 1)


def fill_(module: nn.Module, stand_in: StandIn, weight: Tensor, bias: Tensor, rows: Tensor | None = None) -> None:
    """Write a fitted map into a built stand-in.

    Args:
        module: from `build`.
        stand_in: what it was built from.
        weight: (outputs, inputs * kernel * kernel), or (outputs, rank) with `rows` for a low-rank one.
        bias: (outputs,).
        rows: (rank, inputs * kernel * kernel) of a low-rank stand-in.
    """
    with torch.no_grad():
        if rows is None:
            first = module[0]  # type: ignore[index]
            first.weight.copy_(weight.reshape(first.weight.shape))
            first.bias.copy_(bias)
        else:
            down, up = module.branch  # type: ignore[misc]
            down.weight.copy_(rows.reshape(down.weight.shape))
            up.weight.copy_(weight.reshape(up.weight.shape))
            up.bias.copy_(bias)
