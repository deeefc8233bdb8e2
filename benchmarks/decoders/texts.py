"""Calibration text of several kinds, from what is on any machine that runs this: the same for every method."""

import json
from collections.abc import Iterable, Iterator
from importlib.metadata import distributions
from itertools import chain, zip_longest
from pathlib import Path
from pydoc_data.topics import topics

_MIN_CHARACTERS = 1000


def calibration_file(texts: Path, work: Path, kind: str) -> Path:
    """The file of calibration documents, one a line.

    Args:
        texts: the folder with `calib.jsonl`, prose of one work.
        work: gets the file of a mixture, so that a run that goes on reads the very same documents.
        kind: `prose`, or `mixed`: by turns prose, the reference of the Python language, prose again, and the
            description of an installed package; prose alone where the others are at their end.
    """
    if kind == "prose":
        return texts / "calib.jsonl"
    file = work / "calibration-mixed.jsonl"
    if not file.exists():
        lines = (texts / "calib.jsonl").read_text(encoding="utf-8").splitlines()
        prose = _long(json.loads(line)["text"] for line in lines)
        turns = chain.from_iterable(zip_longest(prose, _reference(), prose, _descriptions()))
        documents = (text for text in turns if text is not None)
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return file


def _reference() -> Iterator[str]:
    return _long(topics[name] for name in sorted(topics))


def _descriptions() -> Iterator[str]:
    packages = sorted(distributions(), key=lambda package: package.metadata["Name"].lower())
    return _long(str(package.metadata.json.get("description", "")) for package in packages)


def _long(documents: Iterable[str]) -> Iterator[str]:
    return (text for text in documents if len(text) >= _MIN_CHARACTERS)
