"""A file of JSON lines that grows by one finished measurement at a time, each line with a checksum."""

import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shoal.errors import FolderError
from shoal.files.reading import TEXT, parse_json, read_bytes, refusing
from shoal.files.writing import write_bytes

_SUM = "crc32"


class JsonlFile:
    """The lines of one file; each survives whatever happens after it was appended.

    Each is a JSON object whose last key is the checksum of what precedes it. Lines of version 0.1.0, which had no
    checksums, are read as long as no other line precedes them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, line: dict[str, Any]) -> None:
        """Add one line.

        Raises:
            FolderError: the disk is full or the file is not writable.
        """
        try:
            with self.path.open("ab") as file:
                file.write(_sealed(line))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise FolderError(
                f"cannot write '{self.path}': {error.strerror or error}", "Free some space, then resume."
            ) from error

    def read(self) -> list[dict[str, Any]]:
        """The lines, in order; one that was cut short or altered is dropped from the file, with all behind it.

        Raises:
            FolderError: the file cannot be read.
        """
        if not os.path.lexists(self.path):
            return []
        with refusing(FolderError, f"cannot read '{self.path}'", "Choose a new --out."):
            content = read_bytes(self.path, TEXT)
        entries: list[dict[str, Any]] = []
        sound = 0
        is_legacy = True
        for line in content.split(b"\n"):
            is_legacy = is_legacy and not _has_checksum(line)
            entry = _parsed(line) if is_legacy else _verified(line)
            if entry is None:
                break
            entries.append(entry)
            sound += len(line) + 1
        if sound != len(content):
            write_bytes(self.path, content[:sound] if sound <= len(content) else content + b"\n")
        return entries

    def rewrite(self, lines: Iterable[dict[str, Any]]) -> None:
        """Put these lines in the place of all that stand there, in one step.

        Raises:
            FolderError: the disk is full or the folder is not writable.
        """
        write_bytes(self.path, b"".join(map(_sealed, lines)))


def _sealed(line: dict[str, Any]) -> bytes:
    text = json.dumps(line)[:-1] + (", " if line else "")
    return f'{text}"{_SUM}": "{zlib.crc32(text.encode()):08x}"}}\n'.encode()


def _tail(checksum: int) -> bytes:
    return f'"{_SUM}": "{checksum:08x}"}}'.encode()


def _has_checksum(line: bytes) -> bool:
    """Whether a line ends in a checksum, even one that was altered a little."""
    template = _tail(0)
    fixed = [place for place in range(-len(template), 0) if template[place] != ord("0")]
    same = sum(line[place] == template[place] for place in fixed) if len(line) >= len(template) else 0
    return 2 * same > len(fixed)


def _verified(line: bytes) -> dict[str, Any] | None:
    """What a line with a checksum holds; None if it is damaged."""
    size = len(_tail(0))
    if line[-size:] != _tail(zlib.crc32(line[:-size])):
        return None
    entry = _parsed(line)
    if entry is not None:
        del entry[_SUM]
    return entry


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entry = parse_json(line.decode(), finite=False)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
