"""Adapters: what the user says of a class of blocks that discovery cannot see through.

Discovery finds additions that join a branch and a shortcut. A highway layer, x + g(x) (F(x) - x), a shortcut inside a
custom autograd function or a compiled kernel is none; its owner knows what is left of it when it goes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

from shoal.errors import SurgeryError, UsageError, check_memory

# Takes the block, returns what is left of it when it is removed; None: it stays.
Adapter = Callable[[Any], nn.Module | None]
_AdapterT = TypeVar("_AdapterT", bound=Adapter)

_ADAPTERS: dict[type[nn.Module], Adapter] = {}


class Shortcut(nn.Module):
    """What is left of most blocks: the first argument, whatever else the block is called with."""

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Tensor:
        """What enters."""
        return x


def adapter(kind: type[nn.Module]) -> Callable[[_AdapterT], _AdapterT]:
    """Say that every module of this class is a block, and by the function below it what is left when it is removed.

    It holds in this process for networks made before and after; a network of a file is best adapted in that file. A
    second adapter of a class takes the place of the first.

    Args:
        kind: the class; subclasses have their own adapters, or that of the nearest class above them.

    Raises:
        UsageError: not a class of modules.
    """
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise UsageError(f"adapter({kind!r}): expected a class of torch.nn.Module", "@shoal.adapter(MyBlock)")

    def keep(function: _AdapterT) -> _AdapterT:
        _ADAPTERS[kind] = function
        return function

    return keep


def adapter_of(module: nn.Module) -> Adapter | None:
    """The adapter of a module's class, or of the nearest class above it."""
    return next((_ADAPTERS[kind] for kind in type(module).__mro__ if kind in _ADAPTERS), None)


def declared_shortcut(module: nn.Module, path: str) -> nn.Module:
    """What is left of a block by its adapter.

    Raises:
        SurgeryError: the adapter keeps it, raised, or returned no module.
    """
    function = adapter_of(module)
    try:
        shortcut = function(module) if function is not None else None
    except Exception as error:
        check_memory(error, "in an adapter")
        raise SurgeryError(f"its adapter raised {type(error).__name__}: {error}") from error
    if shortcut is None:
        raise SurgeryError("its adapter keeps it")
    if not isinstance(shortcut, nn.Module):
        raise SurgeryError(f"its adapter returned {type(shortcut).__name__} for '{path}', not a torch.nn.Module")
    return shortcut


@contextmanager
def restoring_adapters() -> Iterator[None]:
    """While the context lasts adapters may be added; afterwards those from before are back."""
    before = dict(_ADAPTERS)
    try:
        yield
    finally:
        _ADAPTERS.clear()
        _ADAPTERS.update(before)
