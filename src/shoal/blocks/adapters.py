"""Adapters: users declare the shortcut of a class of blocks that discovery cannot see through.

Discovery finds additions that join a branch and a shortcut. A highway layer, x + g(x) (F(x) - x), a shortcut inside a
custom autograd function or a compiled kernel is not one; its author knows what remains when it is removed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

from shoal.errors import SurgeryError, UsageError, check_memory

# Takes the block, returns its shortcut: what remains when it is removed. None: it stays.
Adapter = Callable[[Any], nn.Module | None]
_AdapterT = TypeVar("_AdapterT", bound=Adapter)

_ADAPTERS: dict[type[nn.Module], Adapter] = {}


class Shortcut(nn.Module):
    """The shortcut of most blocks: returns the first argument, whatever else the block is called with."""

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Tensor:
        """Return the first argument."""
        return x


def adapter(kind: type[nn.Module]) -> Callable[[_AdapterT], _AdapterT]:
    """Declare every module of this class a block; the decorated function returns what remains when it is removed.

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
    """The shortcut of a block according to its adapter.

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
    """Adapters may be added inside this context; the previous ones are restored at its end."""
    before = dict(_ADAPTERS)
    try:
        yield
    finally:
        _ADAPTERS.clear()
        _ADAPTERS.update(before)
