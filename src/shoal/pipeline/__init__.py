"""The whole way: choose, remove or replace, recover, prove, measure, keep."""

from shoal.deprecated import former_names
from shoal.pipeline.api import compress
from shoal.pipeline.config import CompressConfig, MeasureConfig, RunInfo
from shoal.pipeline.goals import (
    Blocks,
    Budget,
    ExactOnly,
    Goal,
    Grain,
    MaxDrop,
    ParetoPoint,
    RemoveBlocks,
    goal_from_dict,
    parse_goal,
)
from shoal.pipeline.outcome import block_records
from shoal.pipeline.planner import PlanPrediction, predict_plan
from shoal.pipeline.recovery import RecoveryConfig
from shoal.pipeline.result import CompressResult
from shoal.progress import Callbacks, Journal, NullJournal

__all__ = [
    "Blocks",
    "Budget",
    "Callbacks",
    "CompressConfig",
    "CompressResult",
    "ExactOnly",
    "Goal",
    "Grain",
    "Journal",
    "MaxDrop",
    "MeasureConfig",
    "NullJournal",
    "ParetoPoint",
    "PlanPrediction",
    "RecoveryConfig",
    "RemoveBlocks",
    "RunInfo",
    "block_records",
    "compress",
    "goal_from_dict",
    "parse_goal",
    "predict_plan",
]

__getattr__ = former_names(
    __name__,
    {
        "NoJournal": "shoal.progress:NullJournal",
        "Progress": "shoal.progress:ProgressCallback",
        "Provenance": "shoal.pipeline:RunInfo",
        "Recover": "shoal.pipeline:RecoveryConfig",
        "Result": "shoal.pipeline:CompressResult",
        "Settings": "shoal.pipeline:MeasureConfig",
        "Solved": "shoal.pipeline:PlanPrediction",
        "Target": "shoal.pipeline:Budget",
        "solve": "shoal.pipeline:predict_plan",
    },
)
