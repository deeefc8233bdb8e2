"""Documents from text files: `.txt` and `.jsonl`, alone or in a folder."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.errors import DataError, did_you_mean
from shoal.files.reading import TEXT, is_file, is_folder, read_text, reason_of, refusing

_PLAIN, _LINES = (".txt", ".text", ".md"), (".jsonl", ".ndjson")
_KINDS = (*_PLAIN, *_LINES)
_LEAST = 3  # calibration, validation and test need a document each


@dataclass(frozen=True)
class Documents:
    """Texts that belong together from beginning to end; `test` is None where the files do not set it apart."""

    train: list[str]
    test: list[str] | None = None


def documents(path: Path) -> Documents:
    """The documents of a file or folder.

    In a `.jsonl` file each line is one, under "text". A `.txt` file alone holds as many as blank lines part it into; in
    a folder each `.txt` file is one, unless that gives fewer than three. A folder may set the test documents apart:
    `train` and `test` (or `validation`, `val`) in it, files or folders.

    Raises:
        DataError: no such file, none of a known kind, nothing in them, or not UTF-8.
    """
    if not (is_file(path) or is_folder(path)):
        raise DataError(f"there is no file or folder '{path}'", "Give a .txt or .jsonl file, or a folder of them.")
    if is_file(path):
        return Documents(_enough(_of_file(path, divided=True), path))
    train, test = (
        _part(path, "train"),
        next(filter(None, (_part(path, name) for name in ("test", "validation", "val"))), []),
    )
    if train and test:
        return Documents(_enough(_of_files(train), path, least=2), _enough(_of_files(test), path, least=1))
    return Documents(_enough(_of_files(_files(path)), path))


def _part(folder: Path, name: str) -> list[Path]:
    """The files of one part: those in a sub-folder of this name, or the file called so."""
    if is_folder(folder / name):
        return _files(folder / name)
    return [folder / f"{name}{suffix}" for suffix in _KINDS if (folder / f"{name}{suffix}").is_file()]


def _files(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _KINDS and path.is_file())
    if not paths:
        raise DataError(f"there is no text in '{folder}'", f"Expected files of these kinds: {', '.join(_KINDS)}.")
    return paths


def _of_files(files: Iterable[Path]) -> list[str]:
    files = list(files)
    whole = [text for file in files for text in _of_file(file, divided=False)]
    return whole if len(whole) >= _LEAST else [text for file in files for text in _of_file(file, divided=True)]


def _of_file(path: Path, *, divided: bool) -> list[str]:
    if path.suffix.lower() in _LINES:
        return [text for text in _lines(path) if text.strip()]
    if path.suffix.lower() not in _PLAIN:
        raise DataError(f"'{path.name}' is not a kind of text that Shoal reads", f"Known: {', '.join(_KINDS)}.")
    text = _read(path)
    parts = _divided(text) if divided else [text]
    return [part for part in parts if part.strip()]


def _divided(text: str) -> list[str]:
    """The stretches between blank lines."""
    parts: list[list[str]] = [[]]
    for line in text.replace("\r\n", "\n").split("\n"):
        if line.strip():
            parts[-1].append(line)
        elif parts[-1]:
            parts.append([])
    return ["\n".join(part) for part in parts]


def _lines(path: Path) -> Iterator[str]:
    for number, line in enumerate(_read(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"'{path.name}', line {number} is no JSON: {reason_of(error)}", 'Expected: {"text": "..."}.'
            ) from error
        text = entry.get("text") if isinstance(entry, dict) else None
        if not isinstance(text, str):
            hint = did_you_mean("text", list(entry)) if isinstance(entry, dict) else ""
            raise DataError(
                f"'{path.name}', line {number} has no text under \"text\"",
                f'Expected: {{"text": "..."}}. {hint}'.strip(),
            )
        with refusing(DataError, f"'{path.name}', line {number} is no text", "Convert the file to UTF-8."):
            text.encode("utf-8")  # half a surrogate pair is read by JSON, and by no tokenizer
        yield text


def _read(path: Path) -> str:
    with refusing(DataError, f"'{path}' cannot be read", "Check the file and its permissions."):
        try:
            return read_text(path, TEXT)
        except UnicodeDecodeError as error:
            raise DataError(f"'{path.name}' is not UTF-8 text: {error}", "Convert the file to UTF-8.") from error


def _enough(texts: list[str], path: Path, least: int = _LEAST) -> list[str]:
    if not texts:
        raise DataError(f"the text in '{path}' is empty", "Give files with something in them.")
    if len(texts) < least:
        raise DataError(
            f"'{path}' holds {len(texts)} document{'s' if len(texts) > 1 else ''}, and it takes {least} to keep "
            "calibration, validation and test apart",
            "Part the documents by blank lines, or give a folder of files.",
        )
    return texts
