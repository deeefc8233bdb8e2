"""Blocks that vanish while Lightning trains; importing this needs lightning."""

from typing import Any

from lightning.pytorch import Callback
from torch import nn

from shoal.epsilon.gated_training import GatedTraining
from shoal.errors import UsageError


class EpsilonLightningCallback(Callback):
    """Put gates on the network when training begins; `pruned()` is the network without the blocks that fell silent.

    Args:
        example: a mini-batch as the network takes it.
        network: the attribute of the LightningModule that holds it; '' for the LightningModule itself.
        epsilon: branches whose responses stay below it add nothing.
        freeze_after: epochs a gate stays closed before it is shut for good.
    """

    def __init__(self, example: object, network: str = "model", *, epsilon: float = 2.5, freeze_after: int = 1) -> None:
        self.example, self.network, self.epsilon, self.freeze_after = example, network, epsilon, freeze_after
        self.training: GatedTraining | None = None

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Put the gates on."""
        network = pl_module.get_submodule(self.network)
        self.training = GatedTraining(network, self.example, epsilon=self.epsilon, freeze_after=self.freeze_after)

    def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, *_: Any) -> None:
        """Take in what the gates saw."""
        self._running().step()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Shut gates that stayed closed, and report how many blocks are lost."""
        self._running().end_epoch()
        pl_module.log("epsilon_lost", float(len(self._running().shut)))

    def pruned(self) -> nn.Module:
        """The network without the lost blocks, a copy in eval mode."""
        return self._running().pruned()

    def _running(self) -> GatedTraining:
        if self.training is None:
            raise UsageError("no training has begun", "Pass the callback to Trainer(callbacks=[...]), then fit().")
        return self.training
