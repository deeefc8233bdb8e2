"""The whole way: choose, remove, prove, measure, keep."""

from shoal.pipeline.choose import Goal, Grain, Journal, NoJournal, Progress
from shoal.pipeline.recovering import Recover
from shoal.pipeline.result import Result
from shoal.pipeline.run import Provenance, block_records, compress
from shoal.pipeline.solving import Solved, solve
from shoal.pipeline.target import Target
from shoal.pipeline.told import Settings

__all__ = [
    "Goal",
    "Grain",
    "Journal",
    "NoJournal",
    "Progress",
    "Provenance",
    "Recover",
    "Result",
    "Settings",
    "Solved",
    "Target",
    "block_records",
    "compress",
    "solve",
]
