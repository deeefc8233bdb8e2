"""How long-running work reports what it is doing, and keeps what it has measured."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from shoal.errors import UsageError

ProgressCallback = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Report nothing: the default wherever a `ProgressCallback` is taken."""


class Journal(Protocol):
    """Keeps finished measurements, so that none is lost to a crash."""

    def append(self, line: dict[str, Any]) -> None:
        """Keep one measurement."""

    def measured(self) -> list[dict[str, Any]]:
        """What earlier attempts kept."""


class NullJournal:
    """Keeps nothing."""

    def append(self, line: dict[str, Any]) -> None:
        """Nothing."""

    def measured(self) -> list[dict[str, Any]]:
        """Nothing."""
        return []


@dataclass(frozen=True)
class Callbacks:
    """What is called while a run goes on.

    Args:
        progress: called with (stage, done, total).
        journal: keeps finished measurements; a later call resumes from them.
    """

    progress: ProgressCallback = no_progress
    journal: Journal = field(default_factory=NullJournal)

    def __post_init__(self) -> None:
        if not callable(self.progress):
            raise UsageError(
                f"progress is {self.progress!r}, expected a function", "It is called with (stage, done, total)."
            )
        if not all(callable(getattr(self.journal, name, None)) for name in ("append", "measured")):
            raise UsageError(
                f"journal is {self.journal!r}, expected an object that keeps measurements",
                "It has the methods append(line) and measured(), see shoal.progress.Journal.",
            )


def former_callbacks(former: Mapping[str, Any]) -> dict[str, Callbacks]:
    """Today's `callbacks` for the former keywords `progress` and `journal`, where a call has one of them."""
    values = {name: former[name] for name in ("progress", "journal") if former.get(name) is not None}
    return {"callbacks": Callbacks(**values)} if values else {}


def as_callbacks(callbacks: Callbacks | ProgressCallback | None) -> Callbacks:
    """A bare function is called with the progress.

    Raises:
        UsageError: something else.
    """
    if isinstance(callbacks, Callbacks):
        return callbacks
    if callbacks is not None and not callable(callbacks):
        raise UsageError(
            f"callbacks is {callbacks!r}, expected Callbacks or a function",
            "Like shoal.Callbacks(progress=...), or a function of (stage, done, total).",
        )
    return Callbacks(callbacks) if callbacks is not None else Callbacks()
