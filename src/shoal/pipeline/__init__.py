"""The whole way: choose, remove, prove, measure, keep."""

from shoal.pipeline.api import RunInfo, block_records, compress
from shoal.pipeline.context import MeasureConfig
from shoal.pipeline.goals import BudgetTarget
from shoal.pipeline.greedy import Goal, Grain, Journal, NullJournal, Progress
from shoal.pipeline.predict import PlanPrediction, predict_plan
from shoal.pipeline.recovery import Recover
from shoal.pipeline.result import Result

__all__ = [
    "BudgetTarget",
    "Goal",
    "Grain",
    "Journal",
    "MeasureConfig",
    "NullJournal",
    "PlanPrediction",
    "Progress",
    "Recover",
    "Result",
    "RunInfo",
    "block_records",
    "compress",
    "predict_plan",
]
