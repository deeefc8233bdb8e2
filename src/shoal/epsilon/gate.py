"""The gate in front of a residual addition: it lets a branch through, or nothing of it.

Source: Yu, Yu, Ramalingam, "Learning Strict Identity Mappings in Deep Residual Networks", CVPR 2018, arXiv:1804.01661.
Their gate is four ReLUs and a product: with s = max(relu(F - epsilon) + relu(-F - epsilon)) over the whole mini-batch,
T = relu(1 - L relu(1 - L s)) is 0 or 1 for a very large L, and the block adds T F. T is 1 as soon as one response lies
beyond epsilon. It is flat on both sides, so a closed gate hands its branch no gradient from the loss: weight decay is
all that is left, and the weights die.

Here the same decision is one comparison of the largest response, in float32. The formula needs L s in full precision
(in bfloat16, 1 - L s rounds), the comparison does not, and a NaN leaves the gate open so that the loss shows it.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from shoal.errors import UsageError

Mode = Literal["live", "open", "shut"]


class Gate:
    """One gate, in front of one residual addition. It is no module: it owns no parameter and no buffer.

    Args:
        block: path of the block.
        unit: number of the residual addition in the block.
        epsilon: the branch is let through if any response of the mini-batch is larger in magnitude.
    """

    def __init__(self, block: str, unit: int, epsilon: float) -> None:
        self.block, self.unit = block, unit
        self.epsilon = checked_epsilon(epsilon)
        self.mode: Mode = "live"
        self.means = True
        self.largest: Tensor | None = None
        self.mean: Tensor | None = None
        # A number on no device in particular, so that a shut branch is a product with zero that surgery can prove.
        self.nothing = torch.zeros(())

    def __call__(self, branch: Tensor) -> Tensor:
        """The branch, or as many exact zeros.

        `largest` and `mean` then hold the responses in front of the gate (`mean` only if `means` is set: it is a
        second pass over the branch). A closed gate sends gradients of exactly zero to the branch, not none at all, so
        that an optimiser goes on with its weight decay.
        """
        largest = self._look(branch.detach())
        if self.mode == "shut":
            return branch * self.nothing
        if self.mode == "open" or self.epsilon == 0:
            return branch
        closed = largest <= self.epsilon  # false for NaN
        if branch.device.type == "cpu" and not torch.compiler.is_compiling():
            # Nothing to wait for on a CPU: an open gate costs one pass over the branch, and none backward.
            return torch.where(closed, 0.0, branch) if bool(closed) else branch
        return torch.where(closed, 0.0, branch)

    def _look(self, branch: Tensor) -> Tensor:
        low, high = torch.aminmax(branch)  # one pass, and no copy of the branch
        largest = torch.maximum(high, -low)
        self.largest = largest if largest.dtype == torch.float64 else largest.float()
        self.mean = branch.abs().mean(dtype=self.largest.dtype) if self.means else None
        return self.largest

    @property
    def closed(self) -> bool | None:
        """Whether nothing got through in the last forward; None before the first one."""
        if self.mode != "live":
            return self.mode == "shut"
        return bool(self.largest <= self.epsilon) if self.largest is not None else None


def checked_epsilon(epsilon: float) -> float:
    """A finite number from 0; 0 leaves the gate open.

    Raises:
        UsageError: negative, NaN, infinite.
    """
    if not (isinstance(epsilon, (int, float)) and 0 <= epsilon < math.inf):
        raise UsageError(
            f"epsilon is {epsilon}, expected a finite number from 0",
            "The paper has 2.5 for CIFAR, 1.5 for SVHN, 1.8 to 2.1 for ImageNet; 0 trains the plain network.",
        )
    return float(epsilon)
