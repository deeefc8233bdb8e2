"""Experiment trackers for the metrics of a run: TensorBoard, W&B, MLflow, trackio and others, through accelerate."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from shoal.errors import UsageError, did_you_mean

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

    Args:
        folder: of the run; its name is that of the run, and trackers that write files write them there.
    """

    def __init__(self, folder: Path) -> None:
        self._trackers = [_started(name, folder) for name in _ACTIVE.get()]

    def __bool__(self) -> bool:
        return bool(self._trackers)

    def log(self, values: dict[str, Any], step: int) -> None:
        """Send the numbers among these values."""
        numbers = {
            name: value
            for name, value in values.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        for tracker in self._trackers:
            tracker.log(numbers, step=step)

    def close(self) -> None:
        """Nothing more will be sent."""
        for tracker in self._trackers:
            tracker.finish()
        self._trackers = []


def _installed() -> set[str]:
    from accelerate.tracking import get_available_trackers

    return {str(getattr(logger, "value", logger)) for logger in get_available_trackers()}


def _started(name: str, folder: Path) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # trackers ask it which process this is
    kind = LOGGER_TYPE_TO_CLASS[name]
    tracker = kind(_PROJECT, str(folder)) if kind.requires_logging_directory else kind(_PROJECT)
    tracker.start()
    tracker.store_init_configuration({"folder": folder.name})
    return tracker
