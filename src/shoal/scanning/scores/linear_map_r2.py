"""How much of a block's output one linear map of its input explains, position by position, on samples not fitted.

Source: Razzhigaev et al. 2024, Your Transformer is Secretly Linear, arXiv:2405.12250 (their linearity score is taken on
the rows it is fitted to; here the rows are others).
"""

import torch

from shoal.regress import fit
from shoal.scanning.scores.statistics import Statistics


def linear_map_r2(seen: Statistics) -> float | None:
    """R2 on every other sample of the ridge regression (with bias) on the rest; None with a single sample.

    Where input and output have the same width the ridge shrinks towards the identity. The ridge is chosen on the held
    out samples themselves: a choice among ten, which flatters the figure a little where samples are few.
    """
    if seen.halves is None or not all(half.n for half in seen.halves):
        return None
    train, held_out = seen.halves
    target = torch.eye(train.inputs) if train.inputs == train.outputs else None
    return fit(train, held_out, target=target).r2_held_out
