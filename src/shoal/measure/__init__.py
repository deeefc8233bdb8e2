"""Measuring: quality with intervals, cost, latency, and the machine. Nothing here changes a network."""

from shoal.deprecated import former_names
from shoal.measure.classes import check_samples, kl_per_sample, log_probabilities
from shoal.measure.cost import cost, macs_by_module
from shoal.measure.intervals import mcnemar, mean_interval, paired_drop, wilson
from shoal.measure.latency import interleaved_latency, latency, within_noise
from shoal.measure.latency_ratio import latency_beside, latency_ratios
from shoal.measure.machine import machine
from shoal.measure.output_reading import Reading, inferred, reading_of
from shoal.measure.quality import (
    Predictions,
    compare,
    paired_predictions,
    predictions,
    quality,
)
from shoal.measure.tally import Accumulator, BatchPredictions, read_predictions
from shoal.measure.task_scores import TaskConfig, TaskResults, evaluate_tasks, paired_scores

__all__ = [
    "Accumulator",
    "BatchPredictions",
    "Predictions",
    "Reading",
    "TaskConfig",
    "TaskResults",
    "check_samples",
    "compare",
    "cost",
    "evaluate_tasks",
    "inferred",
    "interleaved_latency",
    "kl_per_sample",
    "latency",
    "latency_beside",
    "latency_ratios",
    "log_probabilities",
    "machine",
    "macs_by_module",
    "mcnemar",
    "mean_interval",
    "paired_drop",
    "paired_predictions",
    "paired_scores",
    "predictions",
    "quality",
    "read_predictions",
    "reading_of",
    "wilson",
    "within_noise",
]

__getattr__ = former_names(
    __name__, {"Tally": "shoal.measure:Accumulator", "turns": "shoal.measure:interleaved_latency"}
)
