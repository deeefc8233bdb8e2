"""The three calls, tasks, and the implementation that runs them in this process."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

TaskFunction = Callable[[Any, Any], Any]
"""Called with `own` and `shared` of a task. It is sent by pickle: it keeps nothing that another process lacks."""


@dataclass(frozen=True)
class WorkerTask:
    """One call of the function.

    Args:
        own: what is to be done; small, hashable.
        shared: what it is done on. Tasks that follow each other and share an object have it sent once.
    """

    own: Any
    shared: Any = None


class Workers(Protocol):
    """Runs tasks; `count` is how many at a time."""

    @property
    def count(self) -> int:
        """How many tasks run at the same time."""

    def start(self, function: TaskFunction) -> None:
        """Give every worker the function that tasks are arguments of."""

    def results(self, tasks: Iterable[WorkerTask]) -> Iterator[tuple[Any, Any]]:
        """`WorkerTask.own` and its result, in the order they come; tasks are drawn as workers become free."""

    def stop(self) -> None:
        """End all workers; nothing runs any more. Does nothing where none were started."""


class LocalWorkers:
    """Runs every task in this process, in order."""

    count = 1

    def __init__(self) -> None:
        self._function: TaskFunction | None = None

    def start(self, function: TaskFunction) -> None:
        """Remember the function."""
        self._function = function

    def results(self, tasks: Iterable[WorkerTask]) -> Iterator[tuple[Any, Any]]:
        """Each as it is drawn."""
        if self._function is None:
            raise RuntimeError("start() before results()")
        for task in tasks:
            yield task.own, self._function(task.own, task.shared)

    def stop(self) -> None:
        """Forget the function."""
        self._function = None


Results = Callable[[Iterable[WorkerTask]], Iterator[tuple[Any, Any]]]


@contextmanager
def working(workers: Workers, function: TaskFunction) -> Iterator[Results]:
    """What runs tasks by `function`. Workers are started by the first task, and are gone when the block ends."""
    started = False

    def results(tasks: Iterable[WorkerTask]) -> Iterator[tuple[Any, Any]]:
        nonlocal started
        remaining = iter(tasks)
        first = next(remaining, None)
        if first is None:
            return
        if not started:
            started = True
            workers.start(function)
        yield from workers.results(_joined(first, remaining))

    try:
        yield results
    finally:
        if started:
            workers.stop()


def _joined(first: WorkerTask, remaining: Iterator[WorkerTask]) -> Iterator[WorkerTask]:
    yield first
    yield from remaining
