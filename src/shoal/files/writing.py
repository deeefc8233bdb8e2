"""Files that are written whole or not at all, with the permissions that the user's umask gives new files."""

import errno
import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from shoal.errors import FolderError

PARTIAL = ".partial"
# Where room may be what is missing; an error of a library does not always say.
_FULL = {None, errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", None)}


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file in a new folder next to `path`, then put it in place in one step.

    Some writers create other files next to the one they write. If a crash leaves them behind, they are in that folder,
    which `remove_partial` removes.

    Raises:
        FolderError: the disk is full, the folder is not writable, or something else than a file stands at `path`; it is
            still there.
    """
    check_replaceable(path)
    place = path.with_name(f".{path.name}.{secrets.token_hex(6)}{PARTIAL}")
    temporary = place / path.name
    try:
        place.mkdir()
        mode = _created(temporary)
        write(temporary)
        temporary.chmod(mode)  # a writer may have put a file of its own in the place of ours
        _flush(temporary)
        temporary.replace(path)
        with suppress(OSError):  # not every file system can flush a folder
            _flush(path.parent)
    except OSError as error:
        if isinstance(error, FolderError):
            raise
        hint = f"{'Free some space, or choose' if error.errno in _FULL else 'Choose'} another --out."
        raise FolderError(f"cannot write '{path}': {error.strerror or error}", hint) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)  # it may have been removed with all else: that must not hide why


def check_replaceable(path: Path) -> None:
    """Refuse to write where a file cannot be put, before the work whose result it is to hold.

    A device or a pipe is no file: to put one in its place would take it away from every other program.

    Raises:
        FolderError: something else than a file stands there, there is no such folder, or it is not writable.
    """
    reason = ""
    with suppress(OSError, ValueError):
        if path.exists() and not path.is_file():
            reason = "it is a folder" if path.is_dir() else "it is no regular file"
        elif not path.parent.is_dir():
            reason = f"there is no folder '{path.parent}'"
    if reason:
        raise FolderError(f"cannot write '{path}': {reason}", "Choose another --out.")
    check_writable(path.parent)


def check_writable(folder: Path) -> None:
    """Refuse a folder that nothing can be written into, before the work whose result it is to hold.

    Raises:
        FolderError: the user may not, or it is on a disk that can only be read.
    """
    if folder.is_dir() and not os.access(folder, os.W_OK):
        raise FolderError(f"the folder '{folder}' is not writable", "Choose another one, or change its permissions.")


def is_partial(path: Path) -> bool:
    """Whether this is what `write_atomically` was interrupted in."""
    return path.name.startswith(".") and path.name.endswith(PARTIAL)


def remove_partial(folder: Path) -> None:
    """Remove what a crash cut short in a folder that is ours alone."""
    for path in filter(is_partial, list(folder.iterdir())):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _created(path: Path) -> int:
    """Make an empty file and return its permissions: those of the umask, which cannot be asked for otherwise."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        return os.fstat(handle).st_mode & 0o777
    finally:
        os.close(handle)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode("utf-8", errors="replace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    write_atomically(path, lambda temporary: _write_bytes(temporary, content))


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
