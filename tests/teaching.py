"""What the tests of recovery stand on: a teacher, a student cut from it, and data."""

import torch
from torch import nn

import networks
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.measure.output_reading import OutputReading, Reading
from shoal.surgery import remove_blocks
from shoal.training.engine import Engine

CLASSES = Reading((OutputReading("", "classes", "as the test says"),))


def engine():
    """A new one each time: accelerate shares its state, and another test may have changed it."""
    return Engine("cpu", "fp32")


def images(count=16, seed=0, shape=(1, 8, 8)):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def teacher():
    """Four pre-activation blocks with batch norms."""
    torch.manual_seed(0)
    return networks.randomised(networks.PreactNet(width=4, depth=4)).eval()


def student(model=None):
    """The teacher without two of its blocks."""
    return remove_blocks(model or teacher(), Batch((images(2),)), ["blocks.1", "blocks.2"]).eval()


def training(batches=3, size=16):
    """A loader by epoch: other samples in each."""
    return lambda epoch: [images(size, 100 * epoch + number) for number in range(batches)]


def validation():
    return [images(24, 9001), images(8, 9002)]


class TokenNet(nn.Module):
    """Takes a dict of tokens and a mask, answers at every position; dropout inside."""

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.norm, self.fc = nn.LayerNorm(width), nn.Linear(width, width)
            self.drop = nn.Dropout(0.3)

        def forward(self, x):
            return x + self.drop(torch.tanh(self.fc(self.norm(x))))

    def __init__(self, width=8, depth=3, classes=6):
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.layers = nn.ModuleList(self.Block(width) for _ in range(depth))
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return {"logits": self.head(x)}


def tokens(seed=0, count=12):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 11, (count, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[:, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def dissected(model):
    return analyze(model, Batch((images(2),)))


def same(one, other):
    left, right = one.state_dict(), other.state_dict()
    return list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)
