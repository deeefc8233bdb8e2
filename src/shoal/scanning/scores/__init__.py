"""Scores of blocks from one pass over the data: statistics, scores, and their rank correlation with the true damage."""

from shoal.scanning.scores.block_scores import SCORES, Score, all_scores
from shoal.scanning.scores.statistics import BlockStatistics

__all__ = ["SCORES", "BlockStatistics", "Score", "all_scores"]
