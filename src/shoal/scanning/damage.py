"""What a change does to a network's outputs, for each sample: as they are read, or as a user's function says."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shoal.batches import Batch
from shoal.errors import NonFiniteError, ShoalError, UsageError
from shoal.measure.output_reading import Reading, inferred

# (raw outputs of the original, raw outputs of the changed network, the mini-batch) -> damage per sample, (samples,)
DamageFunction = Callable[[Any, Any, Batch], Tensor]


def divergence(original: Any, other: Any, batch: Batch) -> Tensor:
    """The damage of each sample where nothing is known of the network but these outputs, see `measure.reading`."""
    reading = inferred(None, original, batch)
    return reading.scaled_by(original, batch).damage(original, other, batch)


@dataclass(frozen=True)
class OutputDamage:
    """How far the outputs of a changed network are from the original's.

    Args:
        reading: how outputs are read.
        function: the user's own, or None. It is called with the outputs of the original and of the changed network,
            both as they were returned (the tensor itself where there is one or one was named, see `Reading.view`), and
            the mini-batch; it returns the damage of each sample, (samples,).
    """

    reading: Reading
    function: DamageFunction | None = None

    def __call__(self, original: Any, other: Any, batch: Batch) -> Tensor:
        """The damage of each sample.

        Raises:
            UsageError: the user's function raised, or returned something else.
            DataError, NonFiniteError: see `Reading.damage`.
        """
        if self.function is None:
            return self.reading.damage(original, other, batch)
        self.reading.tensors(original, batch)
        self.reading.tensors(other, batch)
        try:
            found = self.function(self.reading.view(original), self.reading.view(other), batch)
        except ShoalError:
            raise
        except Exception as error:
            raise UsageError(
                f"the damage function raised {type(error).__name__}: {error}",
                "It is called with the outputs of the original, those of the changed network, both as the network"
                " returns them, and the mini-batch.",
            ) from error
        return _checked(found, batch)

    @property
    def is_class_divergence(self) -> bool:
        """Whether it is the KL divergence of one output, whose last axis holds scores of classes."""
        outputs = self.reading.outputs
        return self.function is None and len(outputs) == 1 and outputs[0].task == "classes" and outputs[0].axis == -1

    @property
    def in_words(self) -> str | None:
        """The user's function by name; None where there is none."""
        return f"{getattr(self.function, '__qualname__', repr(self.function))}, of the user" if self.function else None


def _checked(found: Any, batch: Batch) -> Tensor:
    if not isinstance(found, Tensor) or tuple(found.shape) != (batch.size,):
        shape = f" of shape {tuple(found.shape)}" if isinstance(found, Tensor) else ""
        raise UsageError(
            f"the damage function returned {type(found).__name__}{shape}, expected a tensor of shape ({batch.size},)",
            "Return one number for each sample of the mini-batch: ((a - b) ** 2).flatten(1).mean(1).",
        )
    if not torch.isfinite(found).all():
        raise NonFiniteError("the damage function returned NaN or Inf", "Return a finite number for each sample.")
    return found.detach()
