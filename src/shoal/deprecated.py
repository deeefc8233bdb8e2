"""Names and keywords of version 0.1.0, which work for one more release: each use is a DeprecationWarning."""

import warnings
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from importlib import import_module
from inspect import signature
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
Keywords = dict[str, Any]


def former_names(module: str, names: Mapping[str, str], lazy: Mapping[str, str] | None = None) -> Callable[[str], Any]:
    """A `__getattr__` for a module that still answers to former names.

    Args:
        module: its `__name__`.
        names: former name: where it is now, as `package.module:name`, and a remark after a semicolon where there is
            something to add.
        lazy: today's names that are imported when they are first used: their modules.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807
        if lazy and name in lazy:
            return getattr(import_module(lazy[name]), name)
        if name not in names:
            raise AttributeError(f"module '{module}' has no attribute '{name}'")
        place, *remark = names[name].split("; ")
        home, _, now = place.partition(":")
        message = "; ".join((f"{module}.{name} is now {home}.{now}", *remark))
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return getattr(import_module(home), now)

    return __getattr__


def former_keywords(
    names: Collection[str], adapt: Callable[[Keywords, Keywords], Keywords], instead: str
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function take former keywords.

    Args:
        names: the former keywords.
        adapt: makes today's keywords of the former ones and of all other arguments of a call, by name.
        instead: what to write, for the warning.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def accept(*args: P.args, **keywords: P.kwargs) -> R:
            former: Keywords = {name: keywords.pop(name) for name in names if name in keywords}
            if not former:
                return function(*args, **keywords)
            warnings.warn(
                f"{function.__name__}() takes {', '.join(former)} for the last time: {instead}",
                DeprecationWarning,
                stacklevel=2,
            )
            return function(**adapt(former, signature(function).bind_partial(*args, **keywords).arguments))  # type: ignore[call-arg]

        return accept

    return decorate


def warn_renamed(former: str, now: str) -> None:
    """Warn that a field or an option that has another name now was used under its former one."""
    warnings.warn(f"{former} is called {now} now", DeprecationWarning, stacklevel=4)


def renamed(**names: str) -> Callable[[Keywords, Keywords], Keywords]:
    """An `adapt` for keywords that only have another name now: former name = today's."""

    def adapt(former: Keywords, keywords: Keywords) -> Keywords:
        return {**keywords, **{names[name]: value for name, value in former.items()}}

    return adapt
