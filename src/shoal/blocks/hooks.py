"""Hooks that somebody registered on a module: what they do is lost with it, and no trace of one run shows it."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

# Code whose hooks serve the module itself (a norm of its weights, where they lie, what it records on request).
_FRAMEWORKS = (
    "torch.nn.utils.",
    "torch.nn.modules.",
    "torch.distributed.",
    "torch.ao.",
    "accelerate.",
    "transformers.",
)
_SHOAL = "shoal."

_REGISTRIES = {
    "_forward_pre_hooks": "forward pre-hook",
    "_forward_hooks": "forward hook",
    "_backward_pre_hooks": "backward pre-hook",
    "_backward_hooks": "backward hook",
}


def hook_reason(module: nn.Module, path: str) -> str | None:
    """Why a module cannot go: the user's hook that it, or a module inside it, carries; None where there is none.

    Args:
        module: a block.
        path: its path, for the message.
    """
    for inner, part in module.named_modules():
        for kind, hook in _user_hooks(part):
            carrier = f"{path}.{inner}" if inner else path
            return (
                f"'{carrier}' carries a {kind} ({_name(hook)}), which would be lost with it: remove the hook first, or "
                "register it on a module that stays"
            )
    return None


def _user_hooks(module: nn.Module) -> Iterator[tuple[str, Callable[..., Any]]]:
    for registry, kind in _REGISTRIES.items():
        for hook in getattr(module, registry, {}).values():
            if not _origin(hook).startswith((*_FRAMEWORKS, _SHOAL)):
                yield kind, hook


def _plain(hook: Any) -> Any:
    while isinstance(hook, functools.partial):
        hook = hook.func
    return hook


def _origin(hook: Any) -> str:
    """The Python module that a hook's code comes from, a dot behind it."""
    plain = _plain(hook)
    return f"{getattr(plain, '__module__', None) or type(plain).__module__}."


def _name(hook: Any) -> str:
    plain = _plain(hook)
    name = getattr(plain, "__qualname__", None) or type(plain).__qualname__
    return "a lambda" if name.endswith("<lambda>") else str(name).rpartition("<locals>.")[2]
