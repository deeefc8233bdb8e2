"""Experiment trackers for the metrics of a run: TensorBoard, W&B, MLflow, trackio and others, through accelerate."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from shoal.errors import UsageError, did_you_mean
from shoal.files.reading import reason_of

_PROJECT = "shoal"
_ACTIVE: ContextVar[tuple[str, ...]] = ContextVar("trackers", default=())


@contextmanager
def tracking(names: Sequence[str]) -> Iterator[None]:
    """Send the metrics of all training inside this context to trackers.

    Args:
        names: `tensorboard`, `wandb`, `mlflow`, `trackio`, or another one that accelerate knows.

    Raises:
        UsageError: there is no such tracker, or it is not installed.
    """
    check_trackers(names)
    token = _ACTIVE.set(tuple(dict.fromkeys(names)))
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def check_trackers(names: Sequence[str]) -> None:
    """Refuse what cannot be used, before anything is trained."""
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS
    from accelerate.utils import LoggerType

    builtin = {str(logger.value) for logger in LoggerType}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UsageError(f"there is no tracker '{name}'", did_you_mean(name, list(LOGGER_TYPE_TO_CLASS)))
        if name in builtin and name not in _installed():
            raise UsageError(f"the tracker '{name}' is not installed", f"pip install {name}")


class Trackers:
    """The trackers that are active now, each with a run of its own.

    One that fails later, as when its server is gone, is left out from then on, with a warning: the training goes on.

    Args:
        folder: of the run; its name is that of the run, and trackers that write files write them there.

    Raises:
        UsageError: a tracker does not start; says why.
    """

    def __init__(self, folder: Path) -> None:
        self._trackers: dict[str, Any] = {}
        for name in _ACTIVE.get():
            try:
                self._trackers[name] = _started(name, folder)
            except Exception as error:
                self.close()
                hint = "Log in there or start its server, or leave it out of --track."
                raise UsageError(f"the tracker '{name}' does not start: {reason_of(error)}", hint) from error

    def __bool__(self) -> bool:
        return bool(self._trackers)

    def log(self, values: dict[str, Any], step: int) -> None:
        """Send the numbers among these values."""
        numbers = {
            name: value
            for name, value in values.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        for name, tracker in tuple(self._trackers.items()):
            with self._without(name):
                tracker.log(numbers, step=step)

    def close(self) -> None:
        """Nothing more will be sent."""
        for name, tracker in tuple(self._trackers.items()):
            with self._without(name):
                tracker.finish()
        self._trackers = {}

    @contextmanager
    def _without(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever a library of somebody else raises
            del self._trackers[name]
            warnings.warn(f"the tracker '{name}' gets nothing more: {reason_of(error)}", stacklevel=3)


def _installed() -> set[str]:
    from accelerate.tracking import get_available_trackers

    return {str(getattr(logger, "value", logger)) for logger in get_available_trackers()}


def _started(name: str, folder: Path) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # trackers ask it which process this is
    kind = LOGGER_TYPE_TO_CLASS[name]
    tracker = kind(_PROJECT, str(folder)) if kind.requires_logging_directory else kind(_PROJECT)
    if hasattr(tracker, "start"):  # the lowest accelerate starts a tracker as it is made
        tracker.start()
    tracker.store_init_configuration({"folder": folder.name})
    return tracker
