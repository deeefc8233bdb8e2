"""The loss increase that the gradient predicts for the removal of a block.

Source: attribution patching, Kramar et al. 2024, AtP*, arXiv:2403.00745, with zero as what is patched in;
as a pruning criterion: Molchanov et al. 2017, arXiv:1611.06440, whose absolute value is not taken here.
"""

from shoal.scanning.scores.statistics import Statistics


def taylor(seen: Statistics) -> float | None:
    """Mean over samples of -(F . dL/dF), summed over units, in nats; None where there was no gradient."""
    return 0.0 - seen.product_sum / seen.product_count if seen.product_count else None
