"""The metrics of a task, such as mIoU or PSNR, in the words of the page and the terminal."""

import math

from shoal.record import Interval, MetricComparison, Record
from shoal.report import numbers


def value(metric: MetricComparison, number: float | None) -> str:
    """A figure in its unit: `71.2 %`, `28.4 dB`, `0.031`."""
    if metric.unit == "%":
        return numbers.percent(number)
    text = numbers.significant(number)
    return f"{text} {metric.unit}" if metric.unit and text != numbers.MISSING else text


def interval(metric: MetricComparison, bounds: Interval | None) -> str:
    """Its interval; empty where there is none, as for a single sample."""
    if bounds is None or not all(map(math.isfinite, bounds)):
        return ""
    if metric.unit == "%":
        return numbers.percent_interval(bounds)
    text = numbers.significant_interval(bounds, 3)
    return f"{text} {metric.unit}" if metric.unit else text


def change(metric: MetricComparison) -> str:
    """How much worse the compressed network is, with the paired interval: `0.42 dB worse (0.31 – 0.55)`."""
    if metric.drop is None:
        return ""
    if metric.unit == "%":
        bounds_text = numbers.points_interval(metric.drop_interval)
        text = numbers.points(metric.drop)
        return text if bounds_text == numbers.MISSING else f"{text} ({bounds_text})"
    bounds_text = interval(metric, metric.drop_interval)
    word = "unchanged" if metric.drop == 0 else "worse" if metric.drop > 0 else "better"
    text = word if metric.drop == 0 else f"{value(metric, abs(metric.drop))} {word}"
    return f"{text} ({bounds_text})" if bounds_text else text


def note(metric: MetricComparison, split: str) -> str:
    """What the figures are of."""
    against = "labels" if metric.against == "labels" else "the original's own output"
    return f"{split}, n = {numbers.count(metric.n)}, against {against}, 95 % intervals"


def headline(record: Record) -> str:
    """The metric that decides, in a few words; empty without a task's metric."""
    metric = next(iter(record.comparison.metrics), None)
    if metric is None:
        return ""
    samples = f"{numbers.count(metric.n)} {record.comparison.split} samples"
    if metric.original is None:
        return f"{metric.label} {value(metric, metric.compressed)} of the original on {samples}"
    return f"{metric.label} {value(metric, metric.original)} → {value(metric, metric.compressed)} on {samples}"
