"""The mean response of a block.

Source: the mean in place of the maximum of Yu, Yu, Ramalingam 2018, arXiv:1804.01661, Sec. 3; one outlier decides less.
"""

from shoal.scanning.scores.statistics import Statistics


def mean_response(seen: Statistics) -> float | None:
    """Mean |F| over all samples, positions and channels, F the sum of the branches of all units."""
    return seen.branch_sum / seen.branch_count if seen.branch_count else None
