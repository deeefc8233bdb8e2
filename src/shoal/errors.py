"""The errors Shoal raises: what was given, what was expected, what to do.

Every error is a `ShoalError` and, where one fits, also the builtin a caller would expect to catch.
"""

import errno
import signal
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_LONGEST = 2000  # characters of a message: what a hostile file puts into it must not flood a terminal or a log


def count_of(count: int, noun: str) -> str:
    """A count with its noun, for a message: `1 sample`, `3 samples`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


class ShoalError(Exception):
    """An error the user can fix.

    Messages quote what was given, which may come from anywhere: control characters are escaped, and what is too long
    loses its middle.

    Args:
        message: what was given and what was expected.
        hint: what to do about it; empty where the message says it all.
    """

    kind = "error"
    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        self.message: str = _legible(message)
        self.hint: str = _legible(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class UsageError(ShoalError, ValueError):
    """Options that do not go together, or a value out of its range."""

    kind = "usage"


class SpecError(ShoalError, ValueError):
    """A MODEL or DATA that is unknown or could not be loaded."""

    kind = "spec"


class DataError(ShoalError, ValueError):
    """Data that does not fit: empty, wrong shape, labels out of range."""

    kind = "data"


class WeightsError(ShoalError, ValueError):
    """A weights file that is missing, needs unpickling, or does not fit the network."""

    kind = "weights"


class NonFiniteError(ShoalError, ValueError):
    """NaN or Inf in weights, activations or targets."""

    kind = "non_finite"


class ModelRaisedError(ShoalError, RuntimeError):
    """The user's model or factory raised; the original exception is the cause."""

    kind = "model_raised"


class TraceError(ShoalError, RuntimeError):
    """The network ran, but its chain could not be understood."""

    kind = "trace"


class UnknownBlockError(ShoalError, KeyError):
    """A block path or pattern that matches nothing."""

    kind = "unknown_block"

    __str__ = ShoalError.__str__


class SurgeryError(ShoalError, RuntimeError):
    """A change that cannot be made to this network."""

    kind = "surgery"


class PlanError(ShoalError, ValueError):
    """A plan that is malformed or made for another network."""

    kind = "plan"


class FolderError(ShoalError, OSError):
    """An output folder that cannot be used, or does not hold what was expected."""

    kind = "folder"

    __str__ = ShoalError.__str__


class ExportError(ShoalError, RuntimeError):
    """An exported file that could not be made, or that computes something else."""

    kind = "export"


class OutOfMemoryError(ShoalError, MemoryError):
    """The machine or the GPU ran out of memory; the original exception is the cause."""

    kind = "memory"


class NotReachedError(ShoalError, RuntimeError):
    """The goal cannot be reached; the message names the nearest result."""

    kind = "not_reached"
    exit_code = 1


class Terminated(KeyboardInterrupt):
    """The system asked the process to end: no error, but caught where Ctrl-C is.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class ConsentError(ShoalError, PermissionError):
    """A folder or plan names code to run or a network to download, which the user did not allow."""

    kind = "consent"

    __str__ = ShoalError.__str__


class WorkersError(ShoalError, RuntimeError):
    """Workers that differ from this process, lack what they need, or are lost again and again."""

    kind = "workers"


class PluginError(ShoalError, RuntimeError):
    """An entry point of another distribution that cannot be loaded, clashes with another name, or fails."""

    kind = "plugin"


# How torch and the libraries under it say it: the CPU's allocator, CUDA, cuBLAS, cuDNN, Metal, C++.
_SHORTAGES = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "alloc_failed",
    "bad_alloc",
    "bad allocation",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, or one that it was raised from, reports that memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    is_from_torch = isinstance(error, RuntimeError) and not isinstance(error, ShoalError)
    if is_from_torch and any(text in str(error).lower() for text in _SHORTAGES):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


def check_memory(error: BaseException, doing: str = "") -> None:
    """Raise in place of `error` where it is memory that did not suffice; for use before it is said to be anything else.

    Args:
        error: what was raised.
        doing: what it was needed for, like "running the model on (128, 3, 224, 224)".

    Raises:
        OutOfMemoryError: it was.
    """
    if isinstance(error, OutOfMemoryError):
        raise error
    if is_out_of_memory(error):
        text = str(error).strip().splitlines()
        detail = f": {text[0]}" if text else ""
        raise OutOfMemoryError(
            f"out of memory{' ' if doing else ''}{doing}{detail}",
            "Take smaller mini-batches (--batch-size), fewer samples (--limit), or a device with more memory.",
        ) from error


@contextmanager
def naming_memory_shortage() -> Iterator[None]:
    """What torch raises where memory does not suffice comes out as an `OutOfMemoryError`; also a decorator."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        check_memory(error)
        raise


def _legible(text: str) -> str:
    if len(text) > _LONGEST:
        half = _LONGEST // 2
        text = f"{text[:half]} [... {len(text) - 2 * half} characters more ...] {text[-half:]}"
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char in "\n\t" or not _is_control(char) else f"\\u{ord(char):04x}" for char in text)


def _is_control(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def kind_of(value: object) -> str:
    """What a value is, for a message: `None`, `an int`, `a list`, `the class Net`."""
    if value is None:
        return "None"
    return f"the class {value.__name__}" if isinstance(value, type) else _with_article(type(value).__name__)


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def expect_type(value: object, kind: type[T], name: str, hint: str) -> T:
    """The value of an argument, refused where it is of another type.

    Raises:
        UsageError: says what it is.
    """
    if isinstance(value, kind):
        return value
    raise UsageError(f"{name} is {kind_of(value)}, expected {_with_article(kind.__name__)}", hint)


def check_no_overlap(names: Iterable[str], former: Iterable[str]) -> None:
    """Refuse a call that names a value twice: by today's keyword and by a former one.

    Raises:
        UsageError: says which.
    """
    twice = sorted({*names} & {*former})
    if twice:
        raise UsageError(f"{twice[0]} is there, and a former keyword for the same", f"Put everything into {twice[0]}=.")


def did_you_mean(name: str, candidates: list[str]) -> str:
    """A sentence with near matches of `name` among `known`, or the first known names."""
    import difflib

    near = difflib.get_close_matches(name, candidates, n=3, cutoff=0.5)
    if near:
        return "Did you mean " + " or ".join(repr(match) for match in near) + "?"
    shown = ", ".join(candidates[:12]) + (", ..." if len(candidates) > 12 else "")
    return f"Known: {shown}." if candidates else ""
