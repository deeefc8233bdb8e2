"""Gates on a network that other code trains: which blocks fall silent, and the network without them.

`shoal.epsilon.transformers_callback` and `shoal.epsilon.lightning_callback` drive this from a Trainer.
"""

import torch
from torch import nn

from shoal.arguments import whole_number
from shoal.batches import as_batch, device_of
from shoal.blocks import analyze
from shoal.epsilon.attach import attach_gates_, drop_gates_, gates_of
from shoal.epsilon.gate import checked_epsilon
from shoal.epsilon.monitor import GateMonitor
from shoal.errors import UsageError
from shoal.preserve import copied
from shoal.surgery import remove_blocks
from shoal.training.engine import Engine


class GatedTraining:
    """Gates in front of every residual addition of a network, in place; the caller trains it.

    Args:
        model: whose blocks are to vanish; its state dict stays as it is.
        example: a mini-batch as the model takes it.
        epsilon: branches whose responses stay below it add nothing.
        freeze_after: epochs a gate stays closed before it is shut for good.

    Raises:
        UsageError: numbers out of range, or the network has gates already.
        SurgeryError, TraceError: no block can be gated.
    """

    def __init__(self, model: nn.Module, example: object, *, epsilon: float = 2.5, freeze_after: int = 1) -> None:
        checked_epsilon(epsilon)
        self.freeze_after = whole_number("freeze_after", freeze_after, 1, "Give a number of epochs.")
        if gates_of(model):
            raise UsageError("the network has gates already", "Take them off first: remove_gates_(model).")
        self.example = as_batch(example).to(device_of(model))
        self.model = model
        self.graph = analyze(model, self.example)
        gates = attach_gates_(self.graph, epsilon)
        self.monitor = GateMonitor(gates, Engine(str(device_of(model)), "fp32"))
        self.epsilon, self.epoch = epsilon, 0
        self.shut: dict[str, int] = {}

    def step(self) -> None:
        """Take in what the gates saw in the last forward; call it after every step of training."""
        with torch.no_grad():
            self.monitor.update()

    def end_epoch(self) -> list[str]:
        """Close an epoch; returns the blocks whose gates are shut from now on: they will not come back."""
        self.epoch += 1
        self.monitor.end_epoch(gates_work=self.epsilon > 0)
        closed = [path for path in self.monitor.closed_epochs(self.freeze_after) if path not in self.shut]
        for gate in gates_of(self.model):
            if gate.block in closed:
                gate.mode = "shut"
        self.shut |= dict.fromkeys(closed, self.epoch)
        return closed

    def pruned(self) -> nn.Module:
        """A copy of the network, in eval mode, without gates and without the blocks that were shut."""
        network = copied(self.model)
        drop_gates_(network, ())
        paths = [path for path in self.graph.chain.paths if path in self.shut]
        return (remove_blocks(network, self.example, paths) if paths else network).eval()
