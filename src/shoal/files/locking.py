"""One command at a time works in a folder: a lock of the system, which ends with its process, killed or not."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from weakref import WeakValueDictionary, finalize

from filelock import FileLock, Timeout

from shoal.errors import FolderError
from shoal.files.reading import read_json
from shoal.files.writing import write_text

LOCK, OWNER = ".shoal.lock", ".shoal.owner.json"
_LONGEST = 200  # characters of a command line that an error quotes
_held: WeakValueDictionary[Path, "FolderLock"] = WeakValueDictionary()


class FolderLock:
    """The right to write in a folder, until `release` or the end of the process; made by `lock_folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / LOCK, timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout:
            raise _occupied(folder) from None
        except (OSError, NotImplementedError) as error:
            reason = getattr(error, "strerror", None) or error
            raise FolderError(f"cannot lock the folder '{folder}': {reason}", "Choose another --out.") from error
        # Also where nobody calls `release`, as with tables: when the last who holds the lock goes, or the process ends.
        self._finalizer = finalize(self, _unlock, self._lock, folder / OWNER, os.getpid())
        try:
            write_text(folder / OWNER, json.dumps(_owner()) + "\n")
        except FolderError:
            with suppress(OSError):
                (folder / LOCK).unlink(missing_ok=True)
            self.release()
            raise

    def release(self) -> None:
        """Let others write there."""
        if _held.get(self.folder) is self:
            del _held[self.folder]
        self._finalizer()


def _unlock(lock: FileLock, owner: Path, pid: int) -> None:
    if os.getpid() != pid:  # a fork that ends must not let go what its parent holds
        return
    with suppress(OSError):
        owner.unlink(missing_ok=True)
    with suppress(OSError):
        lock.release()


def lock_folder(path: Path, *, shared: bool = False) -> FolderLock:
    """Lock an existing folder.

    Args:
        path: of the folder.
        shared: a folder that this very process has locked already may be used with that lock.

    Raises:
        FolderError: another command works there; says which one, where, and since when.
    """
    folder = path.resolve()
    lock = _held.get(folder)
    if lock is not None:
        if shared:
            return lock
        raise _occupied(folder)
    lock = FolderLock(folder)
    _held[folder] = lock
    return lock


@contextmanager
def holding(path: Path | None) -> Iterator[None]:
    """Keep a folder locked for a while, where it is not locked by this process already; None: no folder.

    Raises:
        FolderError: another command works there.
    """
    if path is None or path.resolve() in _held:
        yield
        return
    lock = lock_folder(path)
    try:
        yield
    finally:
        lock.release()


def _owner() -> dict[str, str | int]:
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return {"pid": os.getpid(), "host": platform.node(), "command": shlex.join(sys.argv)[:_LONGEST], "since": since}


def _occupied(folder: Path) -> FolderError:
    try:
        owner = read_json(folder / OWNER)
        owner_text = f"by process {owner['pid']} on {owner['host']} since {owner['since']}: {owner['command']}"
    except (OSError, ValueError, KeyError, TypeError):
        owner_text = "by another command"  # which is about to write who it is, or to leave
    return FolderError(f"'{folder}' is in use {owner_text}", "Wait until it has ended, or choose a new --out.")
