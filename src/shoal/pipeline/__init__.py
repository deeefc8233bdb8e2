"""The whole way: choose, remove, prove, measure, keep."""

from shoal.pipeline.choose import Goal, Journal, NoJournal, Progress
from shoal.pipeline.recovering import Recover
from shoal.pipeline.result import Result
from shoal.pipeline.run import Provenance, Settings, block_records, compress
from shoal.pipeline.target import Target

__all__ = [
    "Goal",
    "Journal",
    "NoJournal",
    "Progress",
    "Provenance",
    "Recover",
    "Result",
    "Settings",
    "Target",
    "block_records",
    "compress",
]
