"""A file of JSON lines that grows by one finished measurement at a time."""

import json
import os
from pathlib import Path
from typing import Any

from shoal.errors import FolderError
from shoal.store.writing import write_text


class Lines:
    """The lines of one file; each survives whatever happens after it was appended."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, line: dict[str, Any]) -> None:
        """Add one line.

        Raises:
            FolderError: the disk is full or the file is not writable.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise FolderError(
                f"cannot write '{self.path}': {error.strerror}", "Free some space, then resume."
            ) from error

    def read(self) -> list[dict[str, Any]]:
        """The lines, in order; one that a crash cut short is dropped from the file, with all behind it."""
        if not self.path.exists():
            return []
        whole, found = [], []
        text = self.path.read_text(encoding="utf-8")
        for line in text.splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                break
            whole.append(line)
        kept = "".join(line + "\n" for line in whole)
        if kept != text:
            write_text(self.path, kept)
        return found
