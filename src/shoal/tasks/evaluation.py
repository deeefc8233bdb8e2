"""A task's metrics of two networks on the same samples, with paired intervals from a bootstrap by sample."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from shoal import record
from shoal.batches import Batch, batches, call, device_of
from shoal.errors import DataError, UsageError, check_memory
from shoal.preserve import evaluating
from shoal.tasks.task import Metric, Reference, Row, Task

_RESAMPLES, _SEED = 1000, 0
# For metrics of rows that are no numbers, such as boxes: each resample is a whole evaluation.
_FEWER = 100


def compare_metrics(
    task: Task,
    original: nn.Module,
    changed: nn.Module,
    loader: Iterable[Any],
    change: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> list[record.MetricComparison]:
    """Every metric of the task that applies to the data, of both networks, in one pass over the loader.

    Args:
        task: with its metrics; without any the result is empty.
        original: left as it was.
        changed: likewise.
        loader: mini-batches; those of a metric's labels must fit in all of them or in none.
        change: entered while `changed` answers; where both are the same network, this makes the difference.

    Raises:
        UsageError: a metric raised, or gave something else than a row for each sample.
        DataError: no samples; labels that fit in some mini-batches only.
    """
    gathered = [_MetricRows(metric) for metric in task.metrics]
    if not gathered:
        return []
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for model in (original, changed):
            stack.enter_context(evaluating(model))
        for batch in batches(loader):
            here = batch.to(device_of(original))
            answers: dict[Any, tuple[Any, Any]] = {}
            for rows in gathered:
                respond = rows.metric.respond
                if respond not in answers:
                    ask = respond or call
                    whole = ask(original, here)
                    with change():
                        answers[respond] = whole, ask(changed, here.to(device_of(changed)))
                rows.add(*answers[respond], here)
    return [rows.compare() for rows in gathered if rows.original or rows.changed]


class _MetricRows:
    """What each sample adds to one metric of both networks."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.original: list[Row] = []
        self.changed: list[Row] = []
        self.groups: list[str] = []
        self.against: str | None = None

    def add(self, original: Any, changed: Any, batch: Batch) -> None:
        reference = self._reference(original, batch)
        against = reference.against if reference is not None else "nothing"
        if self.against not in (None, against):
            raise DataError(
                f"the labels of some mini-batches fit the metric {self.metric.label}, those of others do not",
                "Give labels of the same form for all samples, or for none.",
            )
        self.against = against
        if reference is None:
            return
        self.original += self._rows(original, reference, batch)
        self.changed += self._rows(changed, reference, batch)
        self.groups += self.metric.groups(batch) if self.metric.groups is not None else []

    def _reference(self, original: Any, batch: Batch) -> Reference | None:
        metric = self.metric
        labelled = batch.labels is not None and metric.fits(original, batch.labels)
        if metric.against != "original" and labelled:
            return Reference("labels", batch.labels)
        return Reference("original", original) if metric.against != "labels" else None

    def _rows(self, output: Any, reference: Reference, batch: Batch) -> Sequence[Row]:
        try:
            rows = list(self.metric.rows(output, reference, batch))
        except UsageError:
            raise
        except Exception as error:
            check_memory(error, f"in the metric {self.metric.label}")
            raise UsageError(
                f"the metric {self.metric.label} raised {type(error).__name__}: {error}",
                "Does the task fit the network? Name another one with task= (--task).",
            ) from error
        if len(rows) != batch.size:
            raise UsageError(
                f"the metric {self.metric.label} returned {len(rows)} rows for {batch.size} samples",
                "It returns one row for each sample of the mini-batch.",
            )
        return rows

    def compare(self) -> record.MetricComparison:
        metric = self.metric
        original, changed = self.original, self.changed
        if metric.prepare is not None:
            original, changed = list(metric.prepare(original)), list(metric.prepare(changed))
        labelled = self.against == "labels"
        before = metric.value(original) if labelled or metric.perfect is None else metric.perfect
        after = metric.value(changed)
        known = labelled or metric.perfect is not None
        figures = _Bootstrap(metric, original if labelled else None, changed)
        return record.MetricComparison(
            name=metric.name,
            label=metric.label,
            unit=metric.unit,
            better=metric.better,
            against="labels" if labelled else "original",
            n=len(changed),
            original=before if labelled else None,
            original_interval=figures.original if labelled else None,
            compressed=after,
            compressed_interval=figures.changed,
            drop=_drop(metric, before, after) if known else None,
            drop_interval=figures.drop if known else None,
            groups=self._by_group(changed),
            grouped_by=metric.grouped_by,
        )

    def _by_group(self, rows: Sequence[Row]) -> dict[str, float]:
        if len(self.groups) != len(rows):
            return {}
        names = sorted(set(self.groups), key=lambda name: (_number(name), name))
        return {
            name: self.metric.value([row for row, group in zip(rows, self.groups, strict=True) if group == name])
            for name in names
        }


class _Bootstrap:
    """Percentile intervals of both figures and of their paired difference; the same resamples for both.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """

    def __init__(self, metric: Metric, original: Sequence[Row] | None, changed: Sequence[Row]) -> None:
        n = len(changed)
        self.original = self.changed = self.drop = (-math.inf, math.inf)
        if n < 2:
            return
        before, after, drops = [], [], []
        generator = np.random.default_rng(_SEED)
        for _ in range(_resamples(metric, changed)):
            chosen = generator.integers(0, n, n)
            value = metric.value([changed[index] for index in chosen])
            base = metric.perfect if original is None else metric.value([original[index] for index in chosen])
            after.append(value)
            if base is not None:
                before.append(base)
                drops.append(_drop(metric, base, value))
        self.original, self.changed, self.drop = _interval(before), _interval(after), _interval(drops)
        if metric.bounded and self.drop[0] == self.drop[1]:
            # No sample differs: the rule of three (Hanley and Lippman-Hand 1983, JAMA 249:1743), not zero width.
            self.drop = self.drop[0] - 3 / n, self.drop[1] + 3 / n


def _resamples(metric: Metric, rows: Sequence[Row]) -> int:
    """Fewer for a metric of objects, such as boxes, that is a whole evaluation each time."""
    return _RESAMPLES if isinstance(rows[0], (int, float, np.ndarray)) else _FEWER


def _interval(values: Sequence[float]) -> record.Interval:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return -math.inf, math.inf
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)


def _drop(metric: Metric, before: float, after: float) -> float:
    return before - after if metric.better == "higher" else after - before


def _number(name: str) -> float:
    try:
        return float(name)
    except ValueError:
        return math.inf
