"""Run a network only as far as something is read of it: its head alone may cost as much as many of its blocks."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from shoal.batches import Batch, call
from shoal.errors import ModelRaisedError


class StopForward(Exception):  # noqa: N818 - no error: the rest of the forward is not needed
    """Raised by a hook where nothing more is to be read."""


@contextmanager
def until_stopped() -> Iterator[None]:
    """Within its block a network may be run up to where a hook raises `StopForward`.

    Raises:
        ModelRaisedError: the network itself raised.
    """
    try:
        yield
    except ModelRaisedError as error:
        if not isinstance(error.__cause__, StopForward):
            raise


def run_until_stopped(model: nn.Module, batch: Batch) -> None:
    """Call a network, up to where a hook raises `StopForward`, if one does.

    Raises:
        ModelRaisedError: the network itself raised.
    """
    with until_stopped():
        call(model, batch)
