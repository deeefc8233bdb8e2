"""The response of a block beside the stream it is added to.

Source: Jastrzebski et al. 2018, arXiv:1710.04773 (the ratio of the norms of branch and stream).
"""

from shoal.scanning.scores.statistics import Statistics


def relative_response(seen: Statistics) -> float | None:
    """Mean over samples of norm(F) / norm(x); samples whose stream is zero everywhere are left out."""
    return seen.ratio_sum / seen.ratio_count if seen.ratio_count else None
