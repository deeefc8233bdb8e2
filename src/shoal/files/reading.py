"""Every file that may come from elsewhere is opened here: a regular file, of a bounded size, decoded, parsed, refused.

Readers wrap what they do in `refusing`, so that whatever a damaged or hostile file makes a library raise, only a
`ShoalError` leaves. Nothing here hangs (a pipe or device is not opened) or takes memory that the file does not show.
"""

import json
import math
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from shoal.errors import ShoalError, check_memory

DOCUMENT = 2**28  # bytes of a JSON document: plans and records of the largest networks are some MB
TEXT = 2**33  # bytes of a text file or a journal
_DEPTH = 64  # levels of nesting in a JSON document
_INTEGER = 2**64
_UNPACKED, _RATIO = 2**26, 100  # a member of an archive may take so many bytes, or so many times its size in the file


@contextmanager
def refusing(kind: type[ShoalError], message: str, hint: str = "") -> Iterator[None]:
    """Turn whatever is raised inside into an error of this kind, with the reason behind `message`.

    Errors of Shoal itself, Ctrl-C and the like pass; memory that did not suffice is said to be that.
    """
    try:
        yield
    except ShoalError:
        raise
    except BaseException as error:
        # A library in Rust that panics raises what is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        check_memory(error, f"({message})")
        raise kind(f"{message}: {reason_of(error)}", hint) from error


def reason_of(error: BaseException) -> str:
    """Why, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def from_home(path: str | Path) -> Path:
    """A path with a `~` in front replaced by the home folder, which no shell does behind a colon or in a file."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # the home of an unknown user: a name like any other
        return Path(path)


def is_file(path: Path) -> bool:
    """Whether there is a regular file; also where the name is too long, or the folder closed to us."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether there is a folder, likewise."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def open_file(path: Path) -> BinaryIO:
    """A regular file, or a link to one, for reading.

    Raises:
        OSError, ValueError: there is none.
    """
    _check_regular(path.stat().st_mode)  # first: to open a device can set it going
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _check_regular(os.fstat(handle).st_mode)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _check_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise ValueError("it is a folder" if stat.S_ISDIR(mode) else "it is not a regular file")


def read_bytes(path: Path, limit: int = DOCUMENT) -> bytes:
    """The content of a regular file.

    Raises:
        OSError, ValueError: there is none, or it is larger than `limit` bytes.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(limit + 1) if size <= limit else b""
        if size > limit or len(content) > limit:
            raise ValueError(f"it holds {max(size, len(content))} bytes, at most {limit} are read")
        return content


def read_text(path: Path, limit: int = DOCUMENT) -> str:
    """The content of a regular file of UTF-8 text, with or without a byte order mark.

    Raises:
        OSError, ValueError: there is none, it is too large, or no UTF-8.
    """
    return read_bytes(path, limit).decode("utf-8-sig")


def read_json(path: Path, *, finite: bool = True) -> Any:
    """The document in a JSON file, see `parse_json`.

    Raises:
        OSError, ValueError: no such file, or no such document.
    """
    return parse_json(read_text(path), finite=finite)


def parse_json(text: str, *, finite: bool = True) -> Any:
    """A JSON document that every other reader understands in the same way.

    Args:
        text: of the document.
        finite: refuse NaN and Infinity, which Python reads although they are no JSON.

    Raises:
        ValueError: no JSON, nested too deeply, a duplicate key, a number out of range, half a character.
    """
    try:
        document = json.loads(text, object_pairs_hook=_unique)
        _check(document, finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r} is there twice")
    return document


def _check(document: Any, finite: bool) -> None:
    pending = [(document, 1)]
    while pending:
        value, depth = pending.pop()
        if isinstance(value, str):
            value.encode("utf-8")  # half a surrogate pair could be read, but never be written again
        elif isinstance(value, int):
            if not -_INTEGER < value < _INTEGER:
                raise ValueError("a number is out of range")
        elif isinstance(value, float):
            if finite and not math.isfinite(value):
                raise ValueError(f"a number is {value}")
        elif isinstance(value, (dict, list)):
            if depth > _DEPTH:
                raise ValueError("it is nested too deeply")
            inner = [*value.keys(), *value.values()] if isinstance(value, dict) else value
            pending += ((part, depth + 1) for part in inner)


def check_member(member: zipfile.ZipInfo) -> None:
    """Refuse a member of an archive that unpacks to far more than the file shows.

    Raises:
        ValueError: it does.
    """
    if member.file_size > max(_UNPACKED, _RATIO * member.compress_size):
        raise ValueError(
            f"'{member.filename}' takes {member.compress_size} bytes in the file and would unpack to {member.file_size}"
        )
