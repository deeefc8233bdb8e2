"""Networks whose blocks hand values on beside their outputs, in every way that code finds."""

import contextvars

import torch
from torch import nn

OUTSIDE: dict[str, torch.Tensor] = {}
CONTEXT: contextvars.ContextVar = contextvars.ContextVar("side")

CHANNELS = ("dict", "list", "outside", "attribute", "output", "buffer", "hook", "context")


class Block(nn.Module):
    """Residual; may write a side value over a channel, or read that of another block."""

    def __init__(self, width, writes=(), reads=()):
        super().__init__()
        self.first, self.last = nn.Linear(width, width), nn.Linear(width, width)
        self.writes, self.reads = tuple(writes), tuple(reads)
        self.register_buffer("kept", torch.zeros(width), persistent=False)
        self.side, self.around = None, []
        if "hook" in self.writes:
            self.first.register_forward_hook(self._hook)

    def _hook(self, module, args, output):
        OUTSIDE[f"hook {id(self)}"] = output

    def forward(self, x, around=None, shared=None, row=None):
        around = around or self.around[0]
        h = self.first(x)
        if "dict" in self.writes:
            shared[id(self)] = h
        if "list" in self.writes:
            row.append((id(self), h))
        if "outside" in self.writes:
            OUTSIDE[f"outside {id(self)}"] = h
        if "attribute" in self.writes:
            self.side = h
        if "buffer" in self.writes:
            self.kept.copy_(h.mean(0))
        if "context" in self.writes:
            CONTEXT.set({**CONTEXT.get({}), id(self): h})
        for channel, writer in self.reads:
            h = h + around.read(channel, around.blocks[writer], shared, row)
        out = x + self.last(torch.tanh(h))
        if "output" in self.writes:
            self.side = out
        return out


class Net(nn.Module):
    """A chain of blocks; `routes` are (channel, writer, reader). `alone`: blocks are called with one tensor."""

    def __init__(self, count, routes, width=6, seed=0, *, alone=False):
        super().__init__()
        self.alone = alone
        torch.manual_seed(seed)
        self.stem, self.head = nn.Linear(4, width), nn.Linear(width, 3)
        self.blocks = nn.ModuleList(
            Block(
                width,
                writes=[channel for channel, writer, _ in routes if writer == number],
                reads=[(channel, writer) for channel, writer, reader in routes if reader == number],
            )
            for number in range(count)
        )

    def read(self, channel, writer, shared, row):
        if channel == "dict":
            return shared[id(writer)]
        if channel == "list":
            return next(h for key, h in row if key == id(writer))
        if channel == "buffer":
            return writer.kept
        if channel == "context":
            return CONTEXT.get()[id(writer)]
        if channel in ("attribute", "output"):
            return writer.side
        return OUTSIDE[f"{channel} {id(writer)}"]

    def forward(self, x):
        x, shared, row = self.stem(x), {}, []
        for block in self.blocks:
            block.around = [self]
            x = block(x) if self.alone else block(x, self, shared, row)
        return self.head(x)
