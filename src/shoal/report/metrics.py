"""The metrics of a task, such as mIoU or PSNR, in the words of the page and the terminal."""

import math

from shoal.record import Comparison, Interval, MetricComparison, Record
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


def deciding(split: Comparison) -> MetricComparison | None:
    """The metric that a largest drop is about: the first that has one."""
    return next((metric for metric in split.metrics if metric.drop is not None), None)


def loss_unit(metric: MetricComparison) -> str:
    """What a drop is counted in: points of a share, else the unit of the metric."""
    return "points" if metric.unit == "%" else metric.unit


def loss(metric: MetricComparison) -> tuple[float, Interval]:
    """The drop and its interval, in `loss_unit`."""
    scale, drop = 100 if metric.unit == "%" else 1, metric.drop or 0.0
    low, high = metric.drop_interval or (drop, drop)
    return scale * drop, (scale * low, scale * high)


def note(metric: MetricComparison, split: str) -> str:
    """What the figures are of."""
    against = "labels" if metric.against == "labels" else "the original's own output"
    return f"{split}, n = {numbers.count(metric.n)}, against {against}, 95 % intervals"


def groups(metric: MetricComparison) -> list[tuple[str, str]]:
    """The compressed network's figure of each group of samples, by name."""
    return [(name, value(metric, number)) for name, number in metric.groups.items()]


def groups_line(metric: MetricComparison) -> str:
    """The best and the worst group, in one line; empty without groups.

    `Squared error by timestep: 1.2 % at 981 to 9.8 % at 1`.
    """
    known = {name: number for name, number in metric.groups.items() if math.isfinite(number)}
    if len(known) < 2:
        return ""
    order = sorted(known, key=known.__getitem__, reverse=metric.better == "higher")
    ends = (f"{value(metric, known[name])} at {name}" for name in (order[0], order[-1]))
    return f"{metric.label}, by {metric.grouped_by}: {' to '.join(ends)}"


def headline(record: Record) -> str:
    """The metric that decides, in a few words; empty without a task's metric."""
    metric = next(iter(record.comparison.metrics), None)
    if metric is None:
        return ""
    samples = f"{numbers.count(metric.n)} {record.comparison.split} samples"
    if metric.original is None:
        return f"{metric.label} {value(metric, metric.compressed)} of the original on {samples}"
    return f"{metric.label} {value(metric, metric.original)} → {value(metric, metric.compressed)} on {samples}"
