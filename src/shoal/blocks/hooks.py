"""Hooks that users registered on modules: what becomes of them when a block is removed.

The forward hooks of a block move to its shortcut, so that each sees, and does, what it would if the block were passed
through. Backward hooks, and hooks on modules inside a block, would be lost with it: such a block stays.
"""

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
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

# Each kind of hook: where torch keeps it, and the flags of single hooks by the same keys.
_FORWARD = {
    "_forward_pre_hooks": ("forward pre-hook", ("_forward_pre_hooks_with_kwargs",)),
    "_forward_hooks": ("forward hook", ("_forward_hooks_with_kwargs", "_forward_hooks_always_called")),
}
_BACKWARD = {
    "_backward_pre_hooks": ("backward pre-hook", ()),
    "_backward_hooks": ("backward hook", ()),
}


def hook_reason(module: nn.Module, path: str) -> str | None:
    """Why a module cannot be replaced: a user's hook on it or on a module inside it; None where there is none.

    Args:
        module: a layer or block.
        path: its path, for the message.
    """
    return next(_reasons(module, path, carried=False), None)


def removal_hook_reason(module: nn.Module, path: str) -> str | None:
    """Why a block cannot be removed: a user's hook that cannot move to its shortcut; None where there is none."""
    return next(_reasons(module, path, carried=True), None)


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether a user's forward hook or forward pre-hook is registered on this very module."""
    return any(True for _ in _user_hooks(module, _FORWARD))


def with_forward_hooks_of(module: nn.Module, shortcut: nn.Module) -> nn.Module:
    """The shortcut of a block with the user's forward hooks of the block, in their order and with their options.

    Args:
        module: the block; it keeps its hooks.
        shortcut: may be a part of the block, or belong to somebody else: a shallow copy of it carries the hooks.
    """
    if not has_forward_hooks(module):
        return shortcut
    carrier = copy.copy(shortcut)  # the same parameters and submodules
    for registry, (_, flags) in _FORWARD.items():
        hooks = {key: hook for key, hook in getattr(module, registry).items() if _is_users(hook)}
        carrier.__dict__[registry] = OrderedDict([*getattr(shortcut, registry).items(), *hooks.items()])
        for name in flags:
            options = {key: value for key, value in getattr(module, name).items() if key in hooks}
            carrier.__dict__[name] = OrderedDict([*getattr(shortcut, name).items(), *options.items()])
    return carrier


def _reasons(module: nn.Module, path: str, *, carried: bool) -> Iterator[str]:
    """What stands in the way, hook by hook; forward hooks of the module itself may be `carried` over."""
    for inner, part in module.named_modules():
        moves = carried and not inner
        for kind, hook in _user_hooks(part, _BACKWARD if moves else {**_FORWARD, **_BACKWARD}):
            carrier = f"{path}.{inner}" if inner else path
            yield (
                f"'{carrier}' carries a {kind} ({_name(hook)}), which would be lost with it: remove the hook first, or "
                "register it on a module that stays"
            )


def _user_hooks(
    module: nn.Module, registries: Mapping[str, tuple[str, tuple[str, ...]]]
) -> Iterator[tuple[str, Callable[..., Any]]]:
    for registry, (kind, _) in registries.items():
        for hook in getattr(module, registry, {}).values():
            if _is_users(hook):
                yield kind, hook


def _is_users(hook: Any) -> bool:
    return not _origin(hook).startswith((*_FRAMEWORKS, _SHOAL))


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
