"""What two runs of one command must have in common, and what one run must never do twice."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

# What no two runs share, even undisturbed ones: clocks, and what is computed from them.
_VOLATILE = frozenset(
    "seconds began created latency machine command resumed out rate_seconds samples_per_second crc32".split()
)
_NOISE = "latency is within the noise"  # a warning that hangs on the clock
_SECONDS = re.compile(r"\bin \d+ s\b")  # in a note
_OWNER = ".shoal.owner.json"  # names a process


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its relative name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def journal(folder: Path, name: str) -> list[bytes]:
    """The whole lines of a journal; one that a kill cut short counts for nothing."""
    path = folder / name
    return path.read_bytes().split(b"\n")[:-1] if path.is_file() else []


def differences(undisturbed: Path, folder: Path, *, in_order: bool = True) -> list[str]:
    """How a finished run differs from one that nothing disturbed; empty where only clocks do.

    Args:
        undisturbed: its folder.
        folder: of the run.
        in_order: whether the lines of a journal come in the same order, which those of several workers do not.
    """
    found = []
    ours, theirs = (
        {name: content for name, content in files_of(path).items() if Path(name).name != _OWNER}
        for path in (folder, undisturbed)
    )
    if set(ours) != set(theirs):
        found.append(f"other files: {sorted(set(ours) ^ set(theirs))}")
    for name in sorted(set(ours) & set(theirs)):
        if name.endswith(".safetensors"):
            same = _same_tensors(undisturbed / name, folder / name)
        elif name.endswith((".json", ".jsonl")):
            lines = [_documents(content[name], name) for content in (ours, theirs)]
            same = lines[0] == lines[1] or (not in_order and sorted(map(str, lines[0])) == sorted(map(str, lines[1])))
        else:
            continue  # the report and the program are made from what is compared here
        if not same:
            found.append(f"{name} differs")
    return found


def repeated(before: list[bytes], after: list[bytes]) -> list[str]:
    """Measurements that were lost or made again: a journal may only grow, and holds nothing twice."""
    found = []
    if after[: len(before)] != before:
        found.append(f"{len(before)} lines were kept when the process died, not all of them later")
    if len({*after}) != len(after):
        found.append("a journal holds a line twice")
    return found


def _same_tensors(one: Path, other: Path) -> bool:
    ours, theirs = load_file(one), load_file(other)
    return set(ours) == set(theirs) and all(
        ours[name].dtype == theirs[name].dtype and np.array_equal(_bits(ours[name]), _bits(theirs[name]))
        for name in ours
    )


def _bits(array: Any) -> Any:
    return np.frombuffer(array.tobytes(), dtype=np.uint8)


def _documents(content: bytes, name: str) -> list[Any]:
    lines = content.splitlines() if name.endswith(".jsonl") else [content]
    return [_without_clocks(json.loads(line)) for line in lines]


def _without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_clocks(item) for key, item in value.items() if key not in _VOLATILE and "_ms" not in key}
    if isinstance(value, list):
        return [_without_clocks(item) for item in value if _NOISE not in str(item)]
    if isinstance(value, str):
        return _SECONDS.sub("in some seconds", value)
    return value
