"""Side supervision: a second classifier in the middle of the network, in training only.

Source: arXiv:1804.01661: behind block N/2 a head of its own, with the loss weighted by 0.1. Its code puts batch norm,
ReLU and global average pooling in front of the linear layer.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from shoal.batches import logits_of
from shoal.blocks import Chain
from shoal.errors import SurgeryError


class SideHead(nn.Module):
    """Logits from the stream behind one block.

    Args:
        shape: of the stream for one sample: (channels, ...), or (tokens, channels) for two axes.
        classes: how many.
    """

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.channels_last = len(shape) == 2
        channels = shape[-1] if self.channels_last else shape[0]
        self.norm: nn.Module = nn.LayerNorm(channels) if len(shape) < 3 else nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, classes)

    def forward(self, stream: Tensor) -> Tensor:
        """Logits (batch, classes) for the stream (batch, channels, ...) or (batch, tokens, channels)."""
        x = F.relu(self.norm(stream))
        if x.dim() > 2:
            x = x.mean(dim=1) if self.channels_last else x.flatten(2).mean(dim=2)
        return self.head(x)


class Supervised(nn.Module):
    """The network and its side head as one module, so that both are compiled and their gradients synchronised.

    Args:
        network: what is trained.
        side: the head in the middle, or None.
        path: of the block behind which it sits.
    """

    def __init__(self, network: nn.Module, side: SideHead | None = None, path: str = "") -> None:
        super().__init__()
        self.network, self.side, self.path = network, side, path
        self.stream: Tensor | None = None
        self.handle: RemovableHandle | None = None

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor | None]:
        """The network's output, and the side head's logits in training mode."""
        output = self.network(*args, **kwargs)
        stream, self.stream = self.stream, None
        aside = self.side(stream) if self.side is not None and self.training and stream is not None else None
        return output, aside

    def attach_hook(self) -> None:
        """Keep the stream behind the block from now on; again after the block was swapped for what is left of it."""
        self.detach_hook()
        if self.side is not None:
            self.handle = self.network.get_submodule(self.path).register_forward_hook(self._keep)

    def detach_hook(self) -> None:
        """Leave no hook on the network."""
        if self.handle is not None:
            self.handle.remove()
            self.handle = None

    def _keep(self, module: nn.Module, args: Any, output: Any) -> None:
        self.stream = logits_of(output)


def supervised(network: nn.Module, chain: Chain, classes: int | None, *, side: bool) -> Supervised:
    """The network with a side head behind its middle block, where one is wanted.

    Raises:
        SurgeryError: a side head is wanted, and the number of classes is unknown.
    """
    blocks = [block for block in chain if block.units]
    if not side or not blocks:
        return Supervised(network)
    if classes is None:
        raise SurgeryError("the number of classes is unknown, a side head needs it", "Train with --no-side.")
    middle = blocks[max(0, len(blocks) // 2 - 1)]
    return Supervised(network, SideHead(middle.out_shape, classes), middle.path)
