"""One lesson: the teacher answers a mini-batch, the student answers it too, and learns from the difference."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from shoal.batches import Batch
from shoal.engine import Engine
from shoal.errors import DataError
from shoal.measure import Reading
from shoal.outputs import read_outputs
from shoal.recover.config import DistillConfig
from shoal.recover.features import capture_outputs
from shoal.recover.losses import feature_loss, label_loss, output_loss
from shoal.recover.mixup import Mixup, mixup
from shoal.recover.norm_modes import set_train_mode_
from shoal.recover.optim import ClippedOptimizer
from shoal.recover.trainable_format import forward_in_format

_PRIME = 7_368_787  # tells the blends of a step from what loaders draw with the same seed


class DistillStep:
    """What one step does; the same random numbers for the same step, whatever came before.

    Args:
        teacher: on the device, in eval mode.
        paths: of the blocks whose features are compared.
        settings: weights of the other parts of the loss.
        engine: device and precision.
        features: weight of the features' error; 0 for answers alone.
        reading: how outputs are read.
        unlabelled: some mini-batches are meant to have no labels: those of extra data.
    """

    def __init__(
        self,
        teacher: nn.Module,
        paths: Sequence[str],
        settings: DistillConfig,
        engine: Engine,
        *,
        features: float,
        reading: Reading,
        unlabelled: bool = False,
    ) -> None:
        self.teacher, self.settings, self.engine = teacher, settings, engine
        self.features, self.reading, self.unlabelled = features, reading, unlabelled
        self.paths = list(paths) if features else []

    def gradients(self, student: nn.Module, given: Batch, step: int) -> Tensor:
        """Add the gradients of one mini-batch to the student's; the loss comes back, without them."""
        settings = self.settings
        generator = torch.Generator().manual_seed(settings.seed + _PRIME * (step + 1))
        torch.manual_seed(settings.seed + _PRIME * (step + 1))  # for what the network itself draws
        batch, blend = mixup(self.engine.moved(given), settings.blends, generator)
        with torch.no_grad(), capture_outputs(self.teacher, self.paths) as wanted, self.engine.autocast():
            said = read_outputs(forward_in_format(self.teacher, batch)).tensors
        set_train_mode_(student, batch.size, settings.norm_batch)
        with torch.enable_grad():  # whoever calls may have switched gradients off
            with capture_outputs(student, self.paths) as own, self.engine.autocast():
                answered = read_outputs(forward_in_format(student, batch)).tensors
            loss = output_loss(self.reading, said, answered, batch, settings.temperature)
            if own:
                loss = loss + self.features * feature_loss(wanted, own, batch)
            if settings.labels and (given.target is not None or not self.unlabelled):
                # Labels as they were given: on the CPU they are checked without waiting for the device.
                loss = loss + settings.labels * self._label_loss(answered, given, blend)
            self.engine.backward(loss)
        return loss.detach()

    def _label_loss(self, answered: Mapping[str, Tensor], given: Batch, blend: Mixup | None) -> Tensor:
        scores = [label_loss(answered[one.name], given, blend) for one in self.reading.outputs if one.task == "classes"]
        if not scores:
            raise DataError(
                "the outputs are no scores of classes, and the loss was asked to use labels",
                "Set `labels` to 0: distillation needs none.",
            )
        return torch.stack(scores).mean()

    def teach(self, student: nn.Module, stepping: ClippedOptimizer, batch: Batch, step: int, rate: float) -> Tensor:
        """One whole step; returns the loss before it."""
        loss = self.gradients(student, batch, step)
        stepping.step(rate)
        return loss
