"""What a network keeps in Python between two runs: counters, lists, random number generators.

Tensors are seen as torch functions read them. A number that a module counts up, or a generator of its own, moves
unseen, and the next run may go another way by it: so all that `forward` can reach is compared before and after a run.
"""

import logging
import random
import types
from collections import deque
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_OWN = frozenset(vars(nn.Module())) | {"forward", "_is_full_backward_hook", "_hf_hook", "_old_forward"}
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
# They are no state of the network, or keep notes of their own.
_CODE = (type, types.ModuleType, types.BuiltinFunctionType, logging.Logger, torch._ops.OpOverloadPacket)
_DEEPEST = 6
_LONGEST = 2000
_MOST = 50_000


class HostState:
    """What the modules of a network, their classes and the names that their `forward` reads hold, but no tensors.

    Args:
        model: the network, as it is now.
    """

    def __init__(self, model: nn.Module) -> None:
        seen: dict[int, tuple[int, Any]] = {}
        self.parts = {name: _snapshot(item, seen, 0) for name, item in _reachable(model)}

    def changed(self, after: "HostState") -> list[str]:
        """The names of what is no longer the same."""
        names = dict.fromkeys((*self.parts, *after.parts))
        return [name for name in names if self.parts.get(name) != after.parts.get(name)]


def _reachable(model: nn.Module) -> Iterator[tuple[str, Any]]:
    classes: dict[type, None] = {}
    functions: dict[int, Any] = {}
    for path, module in model.named_modules():
        for name, item in vars(module).items():
            if name not in _OWN:
                yield f"{path}.{name}" if path else name, item
        hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        for function in (vars(module).get("forward"), *hooks):
            functions.setdefault(id(function), function)
        classes.update(dict.fromkeys(kind for kind in type(module).__mro__ if not _is_framework(kind.__module__)))
    for kind in classes:
        for name, item in vars(kind).items():
            if isinstance(item, types.FunctionType):
                functions.setdefault(id(item), item)
            elif not name.startswith("__"):
                yield f"{kind.__qualname__}.{name}", item
    for function in functions.values():
        yield from _read_by(function)


def _is_framework(module: str) -> bool:
    return module.partition(".")[0] in ("torch", "builtins", "shoal", "typing", "abc")


def _read_by(function: Any) -> Iterator[tuple[str, Any]]:
    """The globals and the variables around it that a function reads, by name."""
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    if code is None or _is_framework(function.__module__ or ""):
        return
    for name in code.co_names:
        if name in function.__globals__:
            yield f"{function.__module__}.{name}", function.__globals__[name]
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        with suppress(ValueError):  # a variable that is not set yet
            yield f"{function.__qualname__}: {name}", cell.cell_contents


def _snapshot(item: Any, seen: dict[int, tuple[int, Any]], depth: int) -> Any:
    """What compares equal as long as nothing in it changes; a tensor is known by being one.

    Args:
        item: anything.
        seen: what was met before with its number; held, since the number of what is gone comes up again.
        depth: how many containers are around it.
    """
    if isinstance(item, _PLAIN):
        return repr(item)  # NaN is equal to itself, 1 is not True
    if isinstance(item, (Tensor, *_CODE)) or depth > _DEEPEST or len(seen) > _MOST:
        return type(item).__name__
    if id(item) in seen:
        return seen[id(item)][0]
    seen[id(item)] = len(seen), item
    generator = _generator_state(item)
    if generator is not None:
        return generator
    parts = _parts(item)
    if parts is None or len(parts) > _LONGEST:
        return type(item).__name__, len(parts or ())
    return type(item).__name__, [_snapshot(part, seen, depth + 1) for part in parts]


def _generator_state(item: Any) -> str | None:
    """The state of a random number generator; None of anything else."""
    if isinstance(item, random.Random):
        return repr(item.getstate())
    if isinstance(item, np.random.RandomState):
        return repr([*map(_exact, item.get_state(legacy=False)["state"].values())])
    if isinstance(item, np.random.Generator):
        return repr(item.bit_generator.state)
    if isinstance(item, torch.Generator):
        return item.get_state().numpy().tobytes().hex()
    return None


def _exact(item: Any) -> Any:
    return item.tobytes() if isinstance(item, np.ndarray) else item


def _parts(item: Any) -> list[Any] | None:
    """What a container or object holds, in order; None of what shows nothing."""
    if isinstance(item, Mapping):
        return [part for pair in item.items() for part in pair]
    if isinstance(item, (list, tuple, deque)):
        return list(item)
    if isinstance(item, Set):
        return sorted(map(repr, item))
    if isinstance(item, np.ndarray):
        return [item.tobytes()] if item.dtype != object else item.tolist()
    if isinstance(item, (types.FunctionType, types.MethodType)):
        return [part for _, part in _read_by(item)]
    held = getattr(item, "__dict__", None)
    if isinstance(item, nn.Module):
        return [part for name, part in vars(item).items() if name not in _OWN]
    if held is not None:
        return [part for pair in held.items() for part in pair]
    if type(item).__module__ in ("builtins", "itertools") and isinstance(item, Iterator):
        with suppress(TypeError):  # they say where they stand when they are asked how to copy them
            reduced: Any = item.__reduce__()
            return [part for part in reduced if not isinstance(part, _CODE)]
    return None
