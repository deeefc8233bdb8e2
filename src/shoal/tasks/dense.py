"""Networks that return what their usual output is selected from, while they are compared.

The network is of another class for the time being: one derived from its own, of the same name, with another forward.
Its modules, their paths and its weights are the same.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from shoal.preserve import copied
from shoal.tasks.task import Task, guarded

USUAL = "_shoal_usual_class"


_derived: dict[tuple[type[nn.Module], Callable[..., Any]], type[nn.Module]] = {}


def with_forward(kind: type[nn.Module], forward: Callable[..., Any]) -> type[nn.Module]:
    """A class like `kind`, of the same name, with this forward; the same one each time."""
    if (kind, forward) not in _derived:
        members = {"forward": forward, "__module__": kind.__module__, USUAL: kind}
        _derived[kind, forward] = type(kind.__name__, (kind,), members)
    return _derived[kind, forward]


def dense_copy(task: Task | None, model: nn.Module) -> nn.Module:
    """A copy of a network that returns what its usual output is selected from; itself where that is the same.

    Raises:
        SurgeryError: the network cannot be copied.
        UsageError: the task's own function raised, or returned no class that the network can be of.
    """
    owner = f"the task {task.name}" if task is not None else ""
    dense = guarded(owner, "dense", task.dense, model) if task is not None else None
    if dense is None:
        return model
    network = copied(model)
    guarded(owner, "dense", setattr, network, "__class__", dense)
    return network


def restore_usual(model: nn.Module) -> nn.Module:
    """The network, which returns its usual output from now on."""
    model.__class__ = getattr(type(model), USUAL, type(model))
    return model


@contextmanager
def usual_outputs(*models: nn.Module) -> Iterator[None]:
    """While this lasts, networks return their usual output."""
    classes = [(model, type(model)) for model in models]
    try:
        for model in models:
            restore_usual(model)
        yield
    finally:
        for model, dense in classes:
            model.__class__ = dense
