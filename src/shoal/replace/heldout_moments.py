"""What maps are fitted by, taken in mini-batch by mini-batch: rows drawn, and a fifth of the samples held out."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from shoal.errors import DataError, NonFiniteError
from shoal.regress import Moments, sums_device
from shoal.replace.row_sampler import RowSampler

_HELD_OUT = 0.2


class HeldOutMoments:
    """Moments of the rows of a linear map, of the samples that it is fitted on and of those that choose its ridge.

    They are kept on the GPU that the rows come from, if they are small, and otherwise on the CPU; they take no memory
    before the first mini-batch.

    Args:
        sampler: draws the rows.
        inputs: unknowns of the map, for each output.
        outputs: of all targets side by side.
        place: where the activations are, for an error.
    """

    def __init__(self, sampler: RowSampler, inputs: int, outputs: int, place: str) -> None:
        self.sampler, self.inputs, self.outputs, self.place = sampler, inputs, outputs, place

    @cached_property
    def train(self) -> Moments:
        """Of the samples fitted on."""
        return Moments(self.inputs, self.outputs, joint=False)

    @cached_property
    def held_out(self) -> Moments:
        """Of the samples held out."""
        return Moments(self.inputs, self.outputs, joint=False)

    @property
    def size(self) -> float:
        """Bytes of both."""
        return 16.0 * self.inputs * (self.inputs + self.outputs)

    def add(self, x: Tensor, ys: Sequence[Tensor], counted: Tensor | None = None) -> None:
        """Add one mini-batch; a fifth of its samples is held out.

        Args:
            x: the inputs of the map.
            ys: what it should return, at each end.
            counted: which positions are no padding, (samples, positions); None where all are.

        Raises:
            DataError: a single sample cannot be split.
            NonFiniteError: NaN or Inf among the rows.
        """
        if len(x) < 2:
            raise DataError("a mini-batch of one sample cannot be split", "Give at least 2 samples.")
        device = sums_device(x.device, self.inputs, self.outputs)
        self.train, self.held_out = self.train.to(device), self.held_out.to(device)
        held = held_out_of(len(x))
        for moments, part in ((self.held_out, slice(0, held)), (self.train, slice(held, None))):
            mask = counted[part] if counted is not None else None
            rows, targets = self.sampler.draw(x[part], [y[part] for y in ys], mask)
            if not bool(torch.isfinite(rows).all() and torch.isfinite(targets).all()):
                raise NonFiniteError(f"NaN or Inf in the activations {self.place}", "Check weights and data.")
            moments.add(rows, targets)

    def given_up(self, *, biased: bool = True) -> tuple[Moments, Moments]:
        """Those fitted on and those held out, which are not kept: about their means, or zero for a map without bias."""
        train, held_out = self.train, self.held_out
        del self.train, self.held_out
        return (train, held_out) if biased else (train.about_zero(), held_out.about_zero())


def held_out_of(samples: int) -> int:
    """How many samples of a mini-batch, the first ones, are held out."""
    return max(1, round(_HELD_OUT * samples))
