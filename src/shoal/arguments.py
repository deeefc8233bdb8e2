"""Checks of the values that a caller passes: another type, or out of range, is refused before anything runs."""

import math
import operator
import os
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path

from shoal.errors import UsageError


def _refused(name: str, value: object, expected: str, hint: str) -> UsageError:
    return UsageError(f"{name} is {value!r}, expected {expected}", hint)


def whole_number(name: str, value: object, minimum: int, hint: str) -> int:
    """A whole number, also one of NumPy, of at least this.

    Raises:
        UsageError: something else; a bool counts as no number.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise _refused(name, value, f"a whole number, at least {minimum}", hint)
    if value < minimum:
        raise _refused(name, int(value), f"at least {minimum}", hint)
    return operator.index(value)


def positive_number(name: str, value: object, hint: str) -> float:
    """A finite number of more than 0.

    Raises:
        UsageError: something else.
    """
    number = real_number(name, value, hint)
    if not 0 < number < math.inf:
        raise _refused(name, value, "more than 0", hint)
    return number


def real_number(name: str, value: object, hint: str) -> float:
    """A number, also one of NumPy, as Python's.

    Raises:
        UsageError: something else; neither a bool nor NaN counts as a number.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
        raise _refused(name, value, "a number", hint)
    return int(value) if isinstance(value, Integral) else float(value)


def flag(name: str, value: object) -> bool:
    """True or False.

    Raises:
        UsageError: something else, even where Python would take it for one: 'no' counts as true.
    """
    if not isinstance(value, bool):
        raise _refused(name, value, "True or False", f"Write {name}=True, or leave it out.")
    return value


def names_of(name: str, value: object) -> tuple[str, ...]:
    """Several names; a single string is a single name.

    Raises:
        UsageError: something else, or not all of them strings.
    """
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else None
    if names is None or isinstance(value, bytes | Mapping) or not all(isinstance(item, str) and item for item in names):
        raise _refused(name, value, "a name or a list of names", f"Write {name}=['NAME', ...].")
    return names


def as_path(name: str, value: object) -> Path:
    """A path.

    Raises:
        UsageError: something else.
    """
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise _refused(name, value, "a path", "Give a string or a pathlib.Path.")
    return Path(value)


def path_or_none(name: str, value: object) -> None:
    """Refuse what is no path.

    Raises:
        UsageError: with the value.
    """
    if value is not None and not isinstance(value, str | Path):
        raise _refused(name, value, "a path", "Give a string or a pathlib.Path, or leave it out.")
