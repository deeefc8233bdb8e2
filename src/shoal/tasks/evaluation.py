"""A task's metrics of two networks on the same samples, with paired intervals from a bootstrap by sample."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from typing import Any

import numpy as np
import torch
from torch import nn

from shoal import record
from shoal.batches import Batch, batches, call, device_of
from shoal.errors import DataError, NonFiniteError, UsageError, count_of
from shoal.outputs import named_outputs
from shoal.preserve import evaluating
from shoal.tasks.mosaic import Mosaics
from shoal.tasks.task import Metric, Reference, Row, Task, guarded

_RESAMPLES, _SEED = 1000, 0
# For metrics of rows that are no numbers, such as boxes: each resample is a whole evaluation.
_FEWER = 100


def check_metrics(task: Task, model: nn.Module, batch: Batch) -> None:
    """Ask for every metric of a task once, of a few samples, before anything is measured that would then be lost.

    Args:
        task: with its metrics; those of a user may raise.
        model: the original; left as it was.
        batch: a mini-batch, of which two samples are taken.

    Raises:
        UsageError: a metric raised, or gave something else than a row for each sample and a number for them.
        DataError: annotations that cannot be used.
    """
    check_annotations(task, [batch])
    for metric in task.metrics:
        with torch.no_grad(), evaluating(model):
            few, rows = batch.take(2).to(device_of(model)), _MetricRows(metric)
            output = _answer(metric, model, few)
            rows.add(output, output, few)
        if rows.original:
            with suppress(NonFiniteError):  # two samples may have no figure where all have one
                _figure(metric, _prepared(metric, rows.original))


def check_annotations(task: Task, data: Iterable[Batch]) -> None:
    """Refuse labels that make no tensor and that the task cannot use.

    Raises:
        DataError: with the reason.
    """
    for batch in data:
        if batch.annotations is None:
            continue
        reason = guarded(f"the task {task.name}", "annotation_fault", task.annotation_fault, batch.annotations)
        if reason is not None:
            raise DataError(reason, "Mend the annotations, or yield the images alone: labels are not needed.")


def compare_metrics(
    task: Task,
    original: nn.Module,
    changed: nn.Module,
    loader: Iterable[Any],
    change: Callable[[], AbstractContextManager[Any]] = nullcontext,
    notes: list[str] | None = None,
) -> list[record.MetricComparison]:
    """Every metric of the task that applies to the data, of both networks, in one pass over the loader.

    Metrics of images are about the whole images that tiles were cut out of.

    Args:
        task: with its metrics; without any the result is empty.
        original: left as it was.
        changed: likewise.
        loader: mini-batches; those of a metric's labels must fit in all of them or in none.
        change: entered while `changed` answers; where both are the same network, this makes the difference.
        notes: takes what to know about the figures: labels that do not fit; metrics without a figure on these samples,
            which are then left out. By default the latter is refused.

    Raises:
        UsageError: a metric raised, or gave something else than a row for each sample and a number for them.
        DataError: no samples; labels that fit in some mini-batches only; annotations that cannot be used.
        NonFiniteError: a figure is NaN.
    """
    gathered = [_MetricRows(metric) for metric in task.metrics]
    if not gathered:
        return []
    mosaics = Mosaics()
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for model in (original, changed):
            stack.enter_context(evaluating(model))
        for batch in batches(loader):
            check_annotations(task, [batch])
            here = batch.to(device_of(original))
            answers: dict[Any, list[tuple[Any, Any, Batch]]] = {}
            for rows in gathered:
                respond = rows.metric.respond
                if respond not in answers:
                    before = _answer(rows.metric, original, here)
                    with change():
                        after = _answer(rows.metric, changed, here.to(device_of(changed)))
                    answers[respond] = (
                        list(mosaics.add(before, after, here)) if respond is None else [(before, after, here)]
                    )
                for answer in answers[respond]:
                    rows.add(*answer)
        for answer in mosaics.rest():
            for rows in gathered:
                if rows.metric.respond is None:
                    rows.add(*answer)
    if notes is None:
        return [rows.compare() for rows in gathered if rows.original]
    return [comparison for rows in gathered if (comparison := rows.compare_or_note(notes)) is not None]


class _MetricRows:
    """What each sample adds to one metric of both networks."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.original: list[Row] = []
        self.changed: list[Row] = []
        self.groups: list[str] = []
        self.against: str | None = None
        self.ignores_labels = False

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
        if self.metric.groups is not None:
            self.groups += _guarded(self.metric, "groups", self.metric.groups, batch)

    def _reference(self, original: Any, batch: Batch) -> Reference | None:
        metric = self.metric
        if not _guarded(metric, "applies", metric.applies, original):
            return None
        labelled = batch.labels is not None and bool(_guarded(metric, "fits", metric.fits, original, batch.labels))
        self.ignores_labels |= batch.labels is not None and not labelled and metric.against != "original"
        if metric.against != "original" and labelled:
            return Reference("labels", batch.labels)
        return Reference("original", original) if metric.against != "labels" else None

    def _rows(self, output: Any, reference: Reference, batch: Batch) -> Sequence[Row]:
        rows = _guarded(self.metric, "rows", lambda: list(self.metric.rows(output, reference, batch)))
        if len(rows) != batch.size:
            raise UsageError(
                f"the metric {self.metric.label} returned {len(rows)} rows for {batch.size} samples",
                "It returns one row for each sample of the mini-batch.",
            )
        return rows

    def compare_or_note(self, notes: list[str]) -> record.MetricComparison | None:
        """The comparison, and what to know about it; None where there is no figure."""
        if self.ignores_labels:
            instead = "it compares with the original's output" if self.original else "it is left out"
            notes.append(f"the labels do not fit the metric {self.metric.label}: {instead}")
        if not self.original:
            return None
        try:
            comparison = self.compare()
        except NonFiniteError as error:
            notes.append(f"{error.message}; it is left out")
            return None
        notes += _chance_notes(self.metric, comparison.original)
        return comparison

    def compare(self) -> record.MetricComparison:
        metric = self.metric
        original, changed = _prepared(metric, self.original), _prepared(metric, self.changed)
        labelled = self.against == "labels"
        before = _figure(metric, original) if labelled or metric.perfect is None else metric.perfect
        after = _figure(metric, changed)
        for name, figure in (("the original", before), ("the changed network", after)):
            if not math.isfinite(figure):
                raise NonFiniteError(
                    f"the metric {metric.label} of {name} is {figure} on {count_of(len(changed), 'sample')}",
                    "Is it defined for these labels (all alike, or none that counts)? Give others, or another task.",
                )
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
        figures = {
            name: _figure(self.metric, [row for row, group in zip(rows, self.groups, strict=True) if group == name])
            for name in names
        }
        return {name: figure for name, figure in figures.items() if math.isfinite(figure)}


def _chance_notes(metric: Metric, original: float | None) -> list[str]:
    """What to say of an original that knows nothing, by the labels that it was given."""
    if original is None or metric.chance is None:
        return []
    if original > metric.chance if metric.better == "higher" else original < metric.chance:
        return []
    here, chance = (_written(metric, value) for value in (original, metric.chance))
    return [
        f"the original is no better than chance: the metric {metric.label} is {here}, that of a network that knows"
        f" nothing {chance}; figures of such a network mean little. Are the labels those it was trained with, its"
        " weights loaded, and its inputs scaled as it expects?"
    ]


def _written(metric: Metric, value: float) -> str:
    return f"{100 * value:.1f} %" if metric.unit == "%" else f"{value:.4g} {metric.unit}".strip()


def _guarded(metric: Metric, part: str, function: Callable[..., Any], *args: Any) -> Any:
    """What a part of a metric returns; what it raises names it.

    Raises:
        UsageError: it raised. Shoal's own errors pass.
    """
    return guarded(f"the metric {metric.label}", part, function, *args)


def _answer(metric: Metric, model: nn.Module, batch: Batch) -> Any:
    """What the metric asks of a network: its forward, or what `respond` makes of it; of the forward what was named."""
    if metric.respond is None:
        return named_outputs(call(model, batch), metric.outputs)
    return _guarded(metric, "respond", metric.respond, model, batch)


def _prepared(metric: Metric, rows: Sequence[Row]) -> list[Row]:
    """The rows of a network, changed all at once where the metric does that."""
    if metric.prepare is None:
        return list(rows)
    prepared = list(_guarded(metric, "prepare", metric.prepare, rows))
    if len(prepared) != len(rows):
        raise UsageError(
            f"the metric {metric.label} made {len(prepared)} rows of {len(rows)} in `prepare`",
            "It returns one row for each sample.",
        )
    return prepared


def _figure(metric: Metric, rows: Sequence[Row]) -> float:
    """The figure of rows.

    Raises:
        UsageError: it is no number.
    """
    value = _guarded(metric, "value", metric.value, rows)
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"the metric {metric.label} returned {value!r} in `value`, expected a number",
            "It makes one number of the rows of all samples.",
        ) from error


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
            value = _figure(metric, [changed[index] for index in chosen])
            base = metric.perfect if original is None else _figure(metric, [original[index] for index in chosen])
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
