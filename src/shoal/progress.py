"""How long-running work reports what it is doing."""

from collections.abc import Callable

ProgressCallback = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Report nothing: the default wherever a `ProgressCallback` is taken."""
