"""A small student and teacher with their data, the same in every process that imports them."""

import torch
from torch import nn

from shoal.recover import DistillConfig


class Learner(nn.Module):
    """Without batch norms, so that a mini-batch may be divided; with weights that no output depends on."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.inner, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(x)))


class Deep(Learner):
    """With layers in a list, which are divided one by one, and a buffer."""

    def __init__(self, seed):
        super().__init__(seed)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x):
        x = torch.tanh(self.inner(x))
        for layer in self.layers:
            x = x + self.scale * torch.tanh(layer(x))
        return self.head(x)


# Mini-batches of 12 and a last one of 5: two processes get 2 and 3 of its samples, four get 1, 1, 1 and 2.
_generator = torch.Generator().manual_seed(1)
_images, _labels = torch.randn(41, 6, generator=_generator), torch.arange(41) % 3
data = [(_images[start : start + 12], _labels[start : start + 12]) for start in range(0, 41, 12)]
validation = [torch.randn(16, 6, generator=_generator)]
config = DistillConfig(rate=0.05, features=0.0, labels=0.5, looks=2)
