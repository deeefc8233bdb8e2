"""What maps are fitted by, taken in mini-batch by mini-batch: rows drawn, and a fifth of the samples held out.

Mini-batches may be of any size, one sample too: a fifth is that of all samples, not of each mini-batch.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from shoal.errors import DataError, NonFiniteError
from shoal.regress import Moments, sums_device
from shoal.replace.row_sampler import RowSampler

_ONE_IN = 5  # samples is held out


class HeldOutSamples:
    """Which samples are held out of mini-batches that come one after the other: the same ones each time.

    One in each five, the first of the first five. They lie next to each other in a mini-batch, so that each part is a
    view, but at another place in each: sources may come in an order that repeats.
    """

    def __init__(self) -> None:
        self.seen = self._next = 0  # samples so far, and the number of the next one whose turn it is
        self._generator = torch.Generator().manual_seed(0)

    def split(self, samples: int) -> tuple[slice, list[slice]]:
        """The samples of the next mini-batch that are held out, and the others; either may be none."""
        self.seen, count = self.seen + samples, 0
        while self._next < self.seen:
            count += 1
            self._next += _ONE_IN - self._next % _ONE_IN + self._drawn(_ONE_IN)
        start = self._drawn(samples - count + 1)
        rest = [part for part in (slice(0, start), slice(start + count, samples)) if part.stop > part.start]
        return slice(start, start + count), rest

    def _drawn(self, below: int) -> int:
        return int(torch.randint(below, (), generator=self._generator))


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
        self._parts = HeldOutSamples()

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
        """Add one mini-batch.

        Args:
            x: the inputs of the map.
            ys: what it should return, at each end.
            counted: which positions are no padding, (samples, positions); None where all are.

        Raises:
            NonFiniteError: NaN or Inf among the rows.
        """
        device = sums_device(x.device, self.inputs, self.outputs)
        self.train, self.held_out = self.train.to(device), self.held_out.to(device)
        held, rest = self._parts.split(len(x))
        for moments, part in ((self.held_out, held), *((self.train, each) for each in rest)):
            if part.start == part.stop:
                continue
            mask = counted[part] if counted is not None else None
            rows, targets = self.sampler.draw(x[part], [y[part] for y in ys], mask)
            if not bool(torch.isfinite(rows).all() and torch.isfinite(targets).all()):
                raise NonFiniteError(f"NaN or Inf in the activations {self.place}", "Check weights and data.")
            moments.add(rows, targets)

    def given_up(self, *, biased: bool = True) -> tuple[Moments, Moments]:
        """Those fitted on and those held out, which are not kept: about their means, or zero for a map without bias.

        Raises:
            DataError: there was a single sample, which cannot be split.
        """
        if self._parts.seen == 1:
            raise DataError("one sample cannot be split", "Give at least 2 samples.")
        train, held_out = self.train, self.held_out
        del self.train, self.held_out
        return (train, held_out) if biased else (train.about_zero(), held_out.about_zero())
