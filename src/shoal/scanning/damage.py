"""The damage of a change to a network: how far its outputs are from the original's, for each sample.

To add a metric: a function, a line in `METRICS`, its tests. Another distribution adds its own by an entry point in the
group `shoal.metrics` that refers to a function as `DamageFunction` describes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shoal.batches import Batch
from shoal.errors import NonFiniteError, ShoalError, UsageError, did_you_mean
from shoal.measure.output_reading import Reading, inferred
from shoal.outputs import rebuilt
from shoal.plugins import Plugin, PluginTable

# (raw outputs of the original, raw outputs of the changed network, the mini-batch) -> damage per sample, (samples,)
DamageFunction = Callable[[Any, Any, Batch], Tensor]


def divergence(original: Any, changed: Any, batch: Batch) -> Tensor:
    """The damage of each sample, with outputs read as these outputs alone suggest; see `measure.output_reading`."""
    reading = inferred(None, original, batch)
    return reading.scaled_by(original, batch).damage(original, changed, batch)


def _from_plugin(plugin: Plugin) -> DamageFunction:
    if not callable(plugin.value):
        raise plugin.error(f"is of type {type(plugin.value).__name__}, expected a function")
    return plugin.guarded(plugin.value)


# None: as the outputs are read (KL divergence of class scores, relative squared error of values).
METRICS: PluginTable[DamageFunction | None] = PluginTable("shoal.metrics", {"divergence": None}, _from_plugin)


def metric_named(name: str) -> DamageFunction | None:
    """The damage function of a named metric; None for the default.

    Raises:
        UsageError: there is no such metric.
        PluginError: the metric cannot be loaded.
    """
    if name not in METRICS:
        raise UsageError(f"there is no metric '{name}'", did_you_mean(name, list(METRICS)))
    return METRICS[name]


def damage_from(damage: DamageFunction, original: Any, batch: Batch) -> Callable[[Any], Tensor]:
    """The damage of many changed networks on one mini-batch, by what they returned."""
    if isinstance(damage, OutputDamage) and damage.function is None:
        return damage.reading.damage_from(original, batch)
    return lambda changed: damage(original, changed, batch)


@dataclass(frozen=True)
class OutputDamage:
    """How far the outputs of a changed network are from the original's.

    Args:
        reading: how outputs are read.
        function: the user's, or None. It is called with the outputs of the original and of the changed network, both as
            returned (the tensor itself where there is one or one was named, see `Reading.view`), and the mini-batch; it
            returns the damage of each sample, (samples,).
    """

    reading: Reading
    function: DamageFunction | None = None

    @classmethod
    def of(cls, reading: Reading, damage: DamageFunction | str | None) -> "OutputDamage":
        """From a function, or the name of a metric.

        Raises:
            UsageError: there is no such metric.
        """
        return cls(reading, metric_named(damage) if isinstance(damage, str) else damage)

    def __call__(self, original: Any, changed: Any, batch: Batch) -> Tensor:
        """The damage of each sample.

        Raises:
            UsageError: the user's function raised, or returned something else.
            DataError, NonFiniteError: see `Reading.damage`.
        """
        if self.function is None:
            return self.reading.damage(original, changed, batch)
        self.reading.tensors(original, batch)
        self.reading.tensors(changed, batch)
        try:
            damage = self.function(self._handed_out(original), self._handed_out(changed), batch.cloned())
        except ShoalError:
            raise
        except Exception as error:
            raise UsageError(
                f"the damage function raised {type(error).__name__}: {error}",
                "It is called with the outputs of the original, those of the changed network, both as the network"
                " returns them, and the mini-batch.",
            ) from error
        return _checked(damage, batch)

    @property
    def is_class_divergence(self) -> bool:
        """Whether it is the KL divergence of a single output with class scores in its last axis."""
        outputs = self.reading.outputs
        return self.function is None and len(outputs) == 1 and outputs[0].task == "classes" and outputs[0].axis == -1

    def _handed_out(self, output: Any) -> Any:
        """A copy: the function may well compute in place, and the same outputs serve the next candidate."""
        return rebuilt(self.reading.view(output), torch.Tensor.clone)

    @property
    def description(self) -> str | None:
        """The user's function by name; None where there is none."""
        return f"{getattr(self.function, '__qualname__', repr(self.function))}, of the user" if self.function else None


def _checked(damage: Any, batch: Batch) -> Tensor:
    if not isinstance(damage, Tensor) or tuple(damage.shape) != (batch.size,):
        shape = f" of shape {tuple(damage.shape)}" if isinstance(damage, Tensor) else ""
        raise UsageError(
            f"the damage function returned {type(damage).__name__}{shape}, expected a tensor of shape ({batch.size},)",
            "Return one number for each sample of the mini-batch: ((a - b) ** 2).flatten(1).mean(1).",
        )
    if damage.is_complex():
        raise UsageError(
            f"the damage function returned complex numbers ({str(damage.dtype).removeprefix('torch.')}), which have no"
            " order",
            "Return a real number for each sample: their magnitude, by .abs().",
        )
    if not torch.isfinite(damage).all():
        raise NonFiniteError("the damage function returned NaN or Inf", "Return a finite number for each sample.")
    return damage
