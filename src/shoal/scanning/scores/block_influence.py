"""How far a block turns the stream.

Source: Men et al. 2024, ShortGPT, arXiv:2403.03853 (Block Influence).
"""

from shoal.scanning.scores.statistics import Statistics


def block_influence(seen: Statistics) -> float | None:
    """1 - mean cosine of the block's input and output over positions; None where their shapes differ."""
    return 1 - seen.cosine_sum / seen.cosine_count if seen.cosine_count else None
