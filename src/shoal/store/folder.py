"""An output folder: claimed and locked by one command, readable at any moment, resumed by the same command.

`run.json` records the command that owns it; single measurements are lines of `progress.jsonl`; every other file is
written whole or not at all; `record.json` comes last and marks the run as finished.
"""

import json
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from shoal.errors import FolderError
from shoal.files.jsonl import JsonlFile
from shoal.files.locking import LOCK, OWNER, lock_folder
from shoal.files.reading import is_file, read_json, refusing
from shoal.files.writing import check_replaceable, is_partial, remove_partial, write_text
from shoal.fingerprint import as_json, check_fingerprint

RUN, PROGRESS, RECORD, PLAN = "run.json", "progress.jsonl", "record.json", "plan.json"
CONFIG = "config.yaml"
WEIGHTS, EXTRAS = "model.safetensors", "extras.safetensors"
REPORT, PROGRAM, ONNX, FRONT = "report.html", "model.pt2", "model.onnx", "front.csv"
CARD, GGUF = "README.md", "model.gguf"

# What a run writes by fixed names; a page or table that the user names may not take their place.
_OWN = frozenset({RUN, PROGRESS, RECORD, PLAN, CONFIG, WEIGHTS, EXTRAS, REPORT, PROGRAM, ONNX, FRONT, CARD, GGUF})


def check_output_file(path: Path) -> None:
    """Refuse to write a file that the user names where it cannot stand, or over one of a run.

    Raises:
        FolderError: says what is there.
    """
    check_replaceable(path)
    place = path.resolve()
    if place.name in _OWN and any(is_file(place.with_name(name)) for name in (RUN, RECORD)):
        raise FolderError(f"'{path}' belongs to the run in '{path.parent}'", "Choose another --out.")


class RunFolder:
    """The folder of one run of one command, locked until `release`, or until the `with` block ends.

    An error that leaves the block leaves no empty shell behind.

    Args:
        path: created if missing.
        command: the name of the command.
        arguments: everything that decides the result; the same arguments on an unfinished folder resume it.
        configuration: what `config.yaml` will hold: the options that repeat the run.
        legacy: values of `arguments` as version 0.1.0 wrote them, which are accepted too.

    Raises:
        FolderError: the folder holds something else, is finished, is in use, or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        command: str,
        arguments: dict[str, Any],
        *,
        configuration: str = "",
        legacy: dict[str, Any] | None = None,
    ) -> None:
        self.path, self.configuration, self.legacy = path, configuration, legacy
        self.claim = {"command": command, "arguments": arguments, "shoal": version("shoal")}
        self.lines = JsonlFile(path / PROGRESS)
        self._seconds_before, self._began = 0.0, time.time()
        self.resumed = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            self.abandon()
        self.release()

    def _open(self) -> bool:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            names = self._names()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise FolderError(
                f"cannot use '{self.path}' as the output folder: {reason}", "Choose another --out."
            ) from error
        if names and RUN not in names:
            raise FolderError(f"the output folder '{self.path}' is not empty", "Choose a new --out, or empty it.")
        try:
            self.lock = lock_folder(self.path)
        except FolderError:
            with suppress(OSError):
                self.path.rmdir()  # which does nothing but where it is empty, and so was made just now
            raise
        try:
            with refusing(FolderError, f"cannot use '{self.path}' as the output folder", "Choose another --out."):
                return self._check_claim()
        except BaseException:
            if not names:
                self.abandon()
            self.release()
            raise

    def _check_claim(self) -> bool:
        names = self._names()  # again: what was there before the lock may have changed
        if names:
            self._seconds_before = self._seconds_of(self._check_own(names))
        remove_partial(self.path)
        clock = {"seconds": self._seconds_before, "began": self._began}
        write_text(self.path / RUN, json.dumps({**self.claim, **clock}, indent=2) + "\n")
        if self.configuration:
            write_text(self.path / CONFIG, self.configuration)
        return bool(names)

    @property
    def seconds(self) -> float:
        """How long the run took so far, all attempts together; of one that was killed until it last wrote a file."""
        return self._seconds_before + time.time() - self._began

    def _seconds_of(self, claim: dict[str, Any]) -> float:
        """How long the attempts before this one took, by what the last of them wrote; 0 for what is no such number."""
        before, began = (claim.get(key, 0.0) for key in ("seconds", "began"))
        if not all(type(value) in (int, float) and 0 <= value < self._began for value in (before, began)):
            return 0.0
        others = (file for file in self.path.rglob("*") if file.name not in (RUN, LOCK, OWNER))
        last = max((file.lstat().st_mtime for file in others), default=0.0)
        return float(before) + (max(0.0, min(last, self._began) - began) if began else 0.0)

    def _names(self) -> set[str]:
        """What is there, but for files of the lock and for those that a crash cut short."""
        return {file.name for file in self.path.iterdir() if not is_partial(file)} - {LOCK, OWNER}

    def _check_own(self, names: set[str]) -> dict[str, Any]:
        """What `run.json` says, if it is of this command with these arguments."""
        if RUN not in names:
            raise FolderError(f"the output folder '{self.path}' is not empty", "Choose a new --out, or empty it.")
        if RECORD in names:
            raise FolderError(f"'{self.path}' holds a finished run", "Choose a new --out.")
        with refusing(FolderError, f"'{self.path / RUN}' cannot be read", "Choose a new --out."):
            claim = read_json(self.path / RUN)
        if not isinstance(claim, dict) or not isinstance(claim.get("arguments"), dict):
            raise FolderError(f"'{self.path / RUN}' was not written by Shoal", "Choose a new --out.")
        ours = as_json(self.claim)
        if claim.get("command") != ours["command"]:
            raise FolderError(
                f"'{self.path}' holds an unfinished run of `shoal {claim.get('command')}`", "Choose a new --out."
            )
        check_fingerprint(
            claim["arguments"],
            ours["arguments"],
            message=f"'{self.path}' holds an unfinished run with other arguments",
            hint="Repeat that command to resume it, or choose a new --out.",
            legacy=self.legacy,
        )
        return claim

    def release(self) -> None:
        """Let other commands use the folder."""
        self.lock.release()

    def abandon(self) -> None:
        """Leave no empty shell behind: if nothing was measured yet, the claim and the folder go."""
        with suppress(OSError):  # a failure here must not hide why the run ended
            if self._names() <= {RUN, CONFIG}:
                for name in (RUN, CONFIG, OWNER, LOCK):
                    (self.path / name).unlink(missing_ok=True)
                self.path.rmdir()

    def append(self, line: dict[str, Any]) -> None:
        """Add one finished measurement; it survives whatever happens next."""
        self.lines.append(line)

    def measured(self) -> list[dict[str, Any]]:
        """The measurements of earlier attempts, in order; a line that a crash cut short is dropped from the file."""
        return self.lines.read()
