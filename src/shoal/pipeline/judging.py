"""How good a changed network is on validation, against the original: by its outputs, and by the task's metrics."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from shoal.batches import Batch
from shoal.measure import Predictions, Reading, compare, predictions
from shoal.record import Comparison
from shoal.tasks import Task, compare_metrics, usual_outputs


@dataclass
class Judge:
    """Compares networks with the original on the same samples.

    Args:
        original: the original.
        data: mini-batches, kept.
        reading: how outputs are read.
        task: whose metrics are measured too; None for none.
        split: what the data are, for the record.
    """

    original: nn.Module
    data: Sequence[Batch]
    reading: Reading | None = None
    task: Task | None = None
    split: str = "validation"
    _before: Predictions | None = field(default=None, init=False)

    def compare(self, model: nn.Module, change: Callable[[], AbstractContextManager[Any]] = nullcontext) -> Comparison:
        """A network against the original; `change` is entered while it answers, see `tasks.compare_metrics`."""
        if self._before is None:
            self._before = predictions(self.original, self.data, reading=self.reading)
        with change():
            after = predictions(model, self.data, reading=self.reading)
        comparison = compare(self._before, after, self.split)
        if self.task is None:
            return comparison
        with usual_outputs(self.original, model):
            metrics = compare_metrics(self.task, self.original, model, self.data, change)
        return comparison.model_copy(update={"metrics": metrics})
