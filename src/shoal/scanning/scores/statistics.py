"""The statistics of one block that scores are computed from: sums, and moments of its rows, over mini-batches.

Nothing here grows with the data. Half precision is widened before anything is multiplied. Within a sample or a
position sums are taken in the tensor's own precision (torch adds pairwise), across them in float64: to turn every
activation into float64 first would cost a third of the whole pass.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from shoal.regress import Moments


@dataclass
class BlockStatistics:
    """Statistics of one block over all samples so far.

    Args:
        largest: the largest |F| of any of its units.
        branch_sum: sum of |F|, F the sum of the branches of all its units.
        branch_count: number of values in that sum.
        ratio_sum: sum over samples of norm(F) / norm(x), x the stream before its first addition.
        ratio_count: samples whose stream is not zero.
        cosine_sum: sum over positions of the cosine between the block's input and output.
        cosine_count: number of positions.
        product_sum: sum over samples of F . dL/dF, over all units.
        product_count: samples with a gradient.
        halves: moments of (input, output) rows, of every other sample, and of the others.
    """

    largest: float = 0.0
    branch_sum: float = 0.0
    branch_count: int = 0
    ratio_sum: float = 0.0
    ratio_count: int = 0
    cosine_sum: float = 0.0
    cosine_count: int = 0
    product_sum: float = 0.0
    product_count: int = 0
    halves: tuple[Moments, Moments] | None = field(default=None, repr=False)

    def add_unit(self, branch: Tensor) -> None:
        """Add the branch of one unit."""
        low, high = branch.aminmax()
        self.largest = max(self.largest, -float(low), float(high))

    def add_branch(self, stream: Tensor, branch: Tensor) -> None:
        """Add the branches of all units together, and the stream they are added to."""
        branch, stream = _wide(branch).flatten(1), _wide(stream).flatten(1)
        self.branch_sum += _total(branch.abs())
        self.branch_count += branch.numel()
        branch_norm, stream_norm = (values.square().sum(dim=1).double().sqrt() for values in (branch, stream))
        nonzero = stream_norm > 0
        self.ratio_sum += float((branch_norm[nonzero] / stream_norm[nonzero]).sum())
        self.ratio_count += int(nonzero.sum())

    def add_pair(self, before: Tensor, after: Tensor) -> None:
        """Add the block's input and output, both with the channels last and of one shape."""
        before, after = _wide(before), _wide(after)
        # All three sums are taken the same way, so that a block that changes nothing has a cosine of exactly 1.
        product, norm_before, norm_after = (
            (a * b).sum(dim=-1).double() for a, b in ((before, after), (before, before), (after, after))
        )
        cosine = product / (norm_before * norm_after).sqrt()
        # A position that was zero and stays zero is not changed; one that becomes or was zero has lost its direction.
        cosine = torch.where(
            (norm_before == 0) | (norm_after == 0), ((norm_before == 0) & (norm_after == 0)).double(), cosine
        )
        self.cosine_sum += float(cosine.clamp(-1, 1).sum())
        self.cosine_count += cosine.numel()

    def add_rows(self, before: Tensor, after: Tensor, half: Tensor) -> None:
        """Add some of the rows; `half` says for each whether it belongs to the second half."""
        if self.halves is None:
            widths = before.shape[1], after.shape[1]
            self.halves = (Moments(*widths, device=before.device), Moments(*widths, device=before.device))
        for moments, chosen in zip(self.halves, (~half, half), strict=True):
            moments.add(before[chosen], after[chosen])

    def add_gradient(self, branch: Tensor, gradient: Tensor) -> None:
        """Add the branch of one unit and the gradient of the samples' summed losses with respect to it."""
        self.product_sum += _total(_wide(branch) * _wide(gradient))


def _wide(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _total(tensor: Tensor) -> float:
    return float(tensor.flatten(1).sum(dim=1).double().sum())
