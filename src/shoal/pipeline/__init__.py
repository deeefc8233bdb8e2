"""The whole way: choose, remove, prove, measure, keep."""

from shoal.pipeline.api import RunInfo, block_records, compress
from shoal.pipeline.context import MeasureConfig
from shoal.pipeline.goals import Blocks, Budget, ExactOnly, Goal, Grain, MaxDrop, ParetoPoint, RemoveBlocks, parse_goal
from shoal.pipeline.greedy import Journal, NullJournal, Progress
from shoal.pipeline.predict import PlanPrediction, predict_plan
from shoal.pipeline.recovery import Recover
from shoal.pipeline.result import Result

__all__ = [
    "Blocks",
    "Budget",
    "ExactOnly",
    "Goal",
    "Grain",
    "Journal",
    "MaxDrop",
    "MeasureConfig",
    "NullJournal",
    "ParetoPoint",
    "PlanPrediction",
    "Progress",
    "Recover",
    "RemoveBlocks",
    "Result",
    "RunInfo",
    "block_records",
    "compress",
    "parse_goal",
    "predict_plan",
]
