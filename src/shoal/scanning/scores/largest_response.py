"""The largest response of a block.

Source: Yu, Yu, Ramalingam 2018, arXiv:1804.01661, Sec. 3: a block is discarded if every response is below epsilon.
"""

from shoal.scanning.scores.statistics import Statistics


def largest_response(seen: Statistics) -> float | None:
    """Largest |F| over all samples, positions, channels and units."""
    return seen.largest if seen.branch_count else None
