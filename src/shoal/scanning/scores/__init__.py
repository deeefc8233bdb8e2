"""Cheap scores of blocks, all from one pass: one pure function a file, each with its source.

To add one: a file with a function of `Statistics`, a line in `SCORES`, a test file of its name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from shoal.scanning.scores.block_influence import block_influence
from shoal.scanning.scores.largest_response import largest_response
from shoal.scanning.scores.linear_cka import linear_cka
from shoal.scanning.scores.linear_map_r2 import linear_map_r2
from shoal.scanning.scores.mean_response import mean_response
from shoal.scanning.scores.relative_response import relative_response
from shoal.scanning.scores.statistics import Statistics
from shoal.scanning.scores.taylor import taylor


@dataclass(frozen=True)
class Score:
    """A score of a block: where it comes from, and what a high value asks for.

    Args:
        name: by which it is called everywhere.
        source: the paper.
        high_means: 'keep' where a high value marks a block that matters, 'remove' where it marks one that does not.
        function: from the statistics of a block; None where it is not defined for it.
    """

    name: str
    source: str
    high_means: Literal["keep", "remove"]
    function: Callable[[Statistics], float | None]


SCORES: dict[str, Score] = {
    score.name: score
    for score in (
        Score("largest_response", "arXiv:1804.01661", "keep", largest_response),
        Score("mean_response", "arXiv:1804.01661", "keep", mean_response),
        Score("relative_response", "arXiv:1710.04773", "keep", relative_response),
        Score("block_influence", "arXiv:2403.03853", "keep", block_influence),
        Score("linear_cka", "arXiv:1905.00414", "remove", linear_cka),
        Score("linear_map_r2", "arXiv:2405.12250", "remove", linear_map_r2),
        Score("taylor", "arXiv:2403.00745", "keep", taylor),
    )
}

__all__ = ["SCORES", "Score", "Statistics"]
