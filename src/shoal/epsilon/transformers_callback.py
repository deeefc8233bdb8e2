"""Blocks that vanish while the `Trainer` of transformers trains; importing this needs transformers."""

from typing import Any

from torch import nn
from transformers import TrainerCallback

from shoal.epsilon.gated_training import GatedTraining
from shoal.errors import UsageError


class EpsilonTrainerCallback(TrainerCallback):
    """Put gates on the network when training begins; `pruned()` is the network without the blocks that fell silent.

    Weight decay has to reach the layers that end the branches, as it does by default.

    Args:
        example: a mini-batch as the network takes it, such as `{"input_ids": ..., "attention_mask": ...}`.
        epsilon: branches whose responses stay below it add nothing.
        freeze_after: epochs a gate stays closed before it is shut for good.
    """

    def __init__(self, example: object, *, epsilon: float = 2.5, freeze_after: int = 1) -> None:
        self.example, self.epsilon, self.freeze_after = example, epsilon, freeze_after
        self.training: GatedTraining | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any) -> None:
        """Put the gates on."""
        self.training = GatedTraining(model, self.example, epsilon=self.epsilon, freeze_after=self.freeze_after)

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A mini-batch of several that share a step of the optimizer."""
        self._running().step()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The last mini-batch of a step."""
        self._running().step()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Shut gates that stayed closed."""
        self._running().end_epoch()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Report how many blocks are lost, beside the loss."""
        if logs is not None and self.training is not None:
            logs["epsilon_lost"] = len(self.training.shut)

    def pruned(self) -> nn.Module:
        """The network without the lost blocks, a copy in eval mode."""
        return self._running().pruned()

    def _running(self) -> GatedTraining:
        if self.training is None:
            raise UsageError("no training has begun", "Pass the callback to Trainer(callbacks=[...]), then train().")
        return self.training
