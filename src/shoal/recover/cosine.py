"""The learning rate over the budget: up in a straight line, then down along a cosine to nothing.

Source: Loshchilov and Hutter 2017, arXiv:1608.03983, one period; the warm-up of Goyal et al. 2017, arXiv:1706.02677.
"""

import math


def cosine_lr(spent: float, highest: float, warm_up: float) -> float:
    """The rate where `spent` (0..1) of the budget is used up; `warm_up` is the share in which it rises."""
    spent = min(max(spent, 0.0), 1.0)
    if spent < warm_up:
        return highest * spent / warm_up
    return highest * (1 + math.cos(math.pi * (spent - warm_up) / (1 - warm_up))) / 2
