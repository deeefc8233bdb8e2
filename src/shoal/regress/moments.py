"""Second moments of paired rows, taken in mini-batch by mini-batch: all that least squares needs of the data.

Kept about the running mean and merged by the pairwise update of Chan, Golub and LeVeque 1983 (The American
Statistician 37:242), not as raw sums of products: for features whose mean is large beside their spread (behind a ReLU
many are) the difference of two raw sums has no correct digit left. Memory is quadratic in the widths, whatever the
number of rows.
"""

import torch
from torch import Tensor

from shoal.errors import DataError, NonFiniteError

_CHUNK = 2**22  # values turned into float64 at once
_MAX_BYTES = 1e9  # of sums that are kept on a GPU, next to the network


def sums_device(rows: torch.device, inputs: int, outputs: int) -> torch.device:
    """Where moments of rows on this device are kept and solved: on a GPU that is there, if they are small, or the CPU.

    A GPU takes in rows and solves for a map many times faster. But memory next to a large network is scarce there, and
    other accelerators do not know float64.
    """
    small = 8.0 * inputs * (inputs + outputs) <= _MAX_BYTES
    return rows if rows.type == "cuda" and small else torch.device("cpu")


class Moments:
    """Count, means and centred sums of products of rows x (rows, inputs) and y (rows, outputs), in float64.

    Args:
        inputs: width of x.
        outputs: width of y. Several targets of one x (the ends of many spans) stand side by side in y and share `xx`.
        joint: whether to keep all of y's own products, or only their diagonal: regression and its errors need no more,
            and for wide y the rest is most of the work.
        device: where the sums are kept; rows are brought there.
    """

    def __init__(
        self, inputs: int, outputs: int, *, joint: bool = True, device: torch.device | str | None = None
    ) -> None:
        if inputs < 1 or outputs < 1:
            raise DataError(f"moments of {inputs} inputs and {outputs} outputs", "Expected at least one of each.")
        self.n = 0
        self.joint = joint
        # Made in float64 on the CPU first: a device without float64 is refused by torch in its own clear words.
        self.mean_x, self.mean_y, self.xx, self.xy, self.yy = (
            torch.zeros(shape, dtype=torch.float64).to(device if device is not None else "cpu")
            for shape in ((inputs,), (outputs,), (inputs, inputs), (inputs, outputs), (outputs,) * (2 if joint else 1))
        )

    @property
    def inputs(self) -> int:
        """Width of x."""
        return len(self.mean_x)

    @property
    def outputs(self) -> int:
        """Width of y."""
        return len(self.mean_y)

    @property
    def spread(self) -> Tensor:
        """Sum of squares of each output about its mean, (outputs,)."""
        return self.yy.diagonal() if self.joint else self.yy

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in paired rows; nothing of them is kept. Either all of them are taken in, or none.

        Raises:
            DataError: the shapes do not fit.
            NonFiniteError: NaN or Inf among the values.
        """
        self._check(x, y)
        rows = max(1, _CHUNK // (self.inputs + self.outputs))
        for start in range(0, len(x), rows):
            self._absorb(self._of(x[start : start + rows], y[start : start + rows]))

    def merged(self, other: "Moments") -> "Moments":
        """The moments of the rows of both; neither is changed.

        Raises:
            DataError: other widths, or one of them keeps only the diagonal.
        """
        if self.xy.shape != other.xy.shape or self.joint != other.joint:
            raise DataError(
                f"moments of {self._widths()} and of {other._widths()} cannot be merged",
                "Both must have the same inputs and outputs, and both or neither all products of y.",
            )
        result = self._empty()
        result._absorb(self)
        result._absorb(other)
        return result

    def to(self, device: torch.device | str) -> "Moments":
        """These moments on a device: themselves, where they are on it."""
        if self.xx.device == torch.device(device):
            return self
        moved = Moments(self.inputs, self.outputs, joint=self.joint, device=device)
        moved._absorb(self)
        return moved

    def part(self, columns: slice) -> "Moments":
        """The moments with only some of the outputs; they share memory with these."""
        if columns == slice(0, self.outputs):
            return self
        part = Moments.__new__(Moments)
        part.n, part.joint = self.n, False
        part.mean_x, part.xx = self.mean_x, self.xx
        part.mean_y, part.xy, part.yy = self.mean_y[columns], self.xy[:, columns], self.spread[columns]
        return part

    def mapped(self, weight: Tensor) -> "Moments":
        """The moments of weight x in the place of x, (width, inputs)."""
        weight = weight.to(self.xx)
        mapped = Moments(len(weight), self.outputs, joint=self.joint, device=self.xx.device)
        mapped.n, mapped.mean_x, mapped.mean_y = self.n, weight @ self.mean_x, self.mean_y
        mapped.xx, mapped.xy, mapped.yy = weight @ self.xx @ weight.T, weight @ self.xy, self.yy
        return mapped

    def summed(self, weights: Tensor) -> "Moments":
        """The moments of y weights in the place of y, (outputs, width), without its products: see `gain`."""
        summed = Moments(self.inputs, weights.shape[1], joint=False, device=self.xx.device)
        weights = weights.to(self.xx)
        summed.n, summed.mean_x, summed.mean_y = self.n, self.mean_x, self.mean_y @ weights
        summed.xx, summed.xy = self.xx, self.xy @ weights
        return summed

    def about_zero(self) -> "Moments":
        """The moments about zero instead of the means: a map fitted on them has no bias."""
        found = self._empty()
        found.n = self.n
        found.xx = self.xx + self.n * torch.outer(self.mean_x, self.mean_x)
        found.xy = self.xy + self.n * torch.outer(self.mean_x, self.mean_y)
        squares = torch.outer(self.mean_y, self.mean_y) if self.joint else self.mean_y.square()
        found.yy = self.yy + self.n * squares
        return found

    def error(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Sum over all rows of (y - weight x - bias)^2 for each output, (outputs,)."""
        weight, bias = weight.to(self.xx), bias.to(self.xx)
        offset = self.mean_y - weight @ self.mean_x - bias
        # A perfect fit leaves the rounding of a difference, which may be negative.
        return (self.spread - self.gain(weight)).clamp(min=0) + self.n * offset.square()

    def gain(self, weight: Tensor) -> Tensor:
        """By how much a map with this weight and the bias of the means has less error than none, (outputs,)."""
        weight = weight.to(self.xx)
        return 2 * (weight * self.xy.T).sum(dim=1) - (weight * (weight @ self.xx)).sum(dim=1)

    def _empty(self) -> "Moments":
        return Moments(self.inputs, self.outputs, joint=self.joint, device=self.xx.device)

    def _of(self, x: Tensor, y: Tensor) -> "Moments":
        moments = self._empty()
        x, y = x.detach().to(self.xx), y.detach().to(self.xx)
        moments.n, moments.mean_x, moments.mean_y = len(x), x.mean(dim=0), y.mean(dim=0)
        x, y = x - moments.mean_x, y - moments.mean_y
        moments.xx, moments.xy = x.T @ x, x.T @ y
        moments.yy = y.T @ y if self.joint else y.square().sum(dim=0)
        return moments

    def _absorb(self, other: "Moments") -> None:
        if other.n == 0:
            return
        total = self.n + other.n
        share = other.n / total
        gap_x, gap_y = other.mean_x.to(self.xx) - self.mean_x, other.mean_y.to(self.xx) - self.mean_y
        factor = self.n * share
        self.xx += other.xx.to(self.xx) + torch.outer(factor * gap_x, gap_x)
        self.xy += other.xy.to(self.xx) + torch.outer(factor * gap_x, gap_y)
        self.yy += other.yy.to(self.xx) + factor * (torch.outer(gap_y, gap_y) if self.joint else gap_y.square())
        self.mean_x += share * gap_x
        self.mean_y += share * gap_y
        self.n = total

    def _check(self, x: Tensor, y: Tensor) -> None:
        expected = (len(x), self.inputs), (len(x), self.outputs)
        if (tuple(x.shape), tuple(y.shape)) != expected:
            raise DataError(
                f"rows of shapes {tuple(x.shape)} and {tuple(y.shape)} for moments of {self._widths()}",
                "Expected (rows, inputs) and (rows, outputs), as many rows in both.",
            )
        for name, rows in (("inputs", x), ("outputs", y)):
            finite = torch.isfinite(rows)
            if not finite.all():
                raise NonFiniteError(
                    f"the {name} of a regression hold NaN or Inf: {int((~finite).sum())} of {rows.numel()} values",
                    "Check the weights and the scale of the input.",
                )

    def _widths(self) -> str:
        return f"{self.inputs} inputs and {self.outputs} outputs" + ("" if self.joint else " (diagonal)")
