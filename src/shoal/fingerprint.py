"""Whether a file or folder on disk belongs to this run: what it was made for, compared with what it is to serve.

A fingerprint is plain data: digests of the network and of the data with its labels, and the configuration. Whatever
resumes or reuses earlier work checks it here before anything is read from that work.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoal.batches import Batch
from shoal.errors import FolderError, ShoalError

_MAX_SHOWN = 4  # differences that a message names


def check_fingerprint(
    recorded: Any,
    current: Mapping[str, Any],
    *,
    message: str,
    hint: str,
    legacy: Mapping[str, Any] | None = None,
    error: type[ShoalError] = FolderError,
) -> None:
    """Refuse earlier work that was made for another network, other data or another configuration.

    Args:
        recorded: the fingerprint on disk.
        current: the fingerprint of this run.
        message: what the error says, before the differences.
        hint: what to do about it.
        legacy: values of `current` as version 0.1.0 wrote them, which are accepted too.
        error: the class to raise.

    Raises:
        ShoalError: of that class; names the first differences, with both values.
    """
    if not isinstance(recorded, Mapping):
        raise error(f"{message}: it holds no fingerprint", hint)
    expected = as_json(current)
    old = {key: value for key, value in as_json(legacy or {}).items() if recorded.get(key) == value}
    different = list(differences(recorded, {**expected, **old}))
    if different:
        more = f", and {len(different) - _MAX_SHOWN} more" if len(different) > _MAX_SHOWN else ""
        raise error(f"{message}: {', '.join(different[:_MAX_SHOWN])}{more}", hint)


def differences(recorded: Mapping[str, Any], current: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every value that differs, like `settings.seed was 0, now 1`; a missing value counts as None."""
    for key in sorted({*recorded, *current}):
        before, now = recorded.get(key), current.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            yield from differences(before, now, f"{prefix}{key}.")
        elif before != now:
            yield f"{prefix}{key} was {before!r}, now {now!r}"


def as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they come back from a JSON file: tuples as lists, keys as strings."""
    return json.loads(json.dumps(dict(values)))


def digest_of(batches: Iterable[Batch]) -> str:
    """The same for the same samples and labels in the same mini-batches, to the bit.

    Names of arguments, their order, dtypes, and values that are no tensors count too.
    """
    digest = hashlib.sha256()
    for batch in batches:
        _add(digest, ("batch", batch.args, batch.kwargs, batch.target))
    return digest.hexdigest()[:16]


def legacy_digest_of(batches: Iterable[Batch]) -> str:
    """The digest that version 0.1.0 wrote: of the input tensors alone, without labels and names of arguments."""
    digest = hashlib.sha256()
    for batch in batches:
        for tensor in batch.tensors:
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _add(digest: "hashlib._Hash", value: Any, depth: int = 0) -> None:
    """A value, with its kind and length, so that no two values run together."""
    kind = type(value).__qualname__
    if isinstance(value, Tensor):
        plain = value.detach().to("cpu").to_dense().resolve_conj().resolve_neg().contiguous().reshape(-1)
        digest.update(f"{value.layout} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(plain.view(torch.uint8).numpy().tobytes())
        return
    if isinstance(value, np.ndarray) and value.dtype != object:
        digest.update(f"array {value.dtype} {value.shape};".encode() + value.tobytes())
        return
    parts = _parts_of(value) if depth < _DEEPEST else None
    if parts is not None:
        digest.update(f"{kind} {len(parts)};".encode())
        for part in parts:
            _add(digest, part, depth + 1)
        return
    text = repr(value)
    if " at 0x" in text:  # an address tells nothing in another process
        text = getattr(value, "__qualname__", "")
    digest.update(f"{kind} {len(text)};{text}".encode())


_DEEPEST = 8  # levels of containers, since one may hold itself


def _parts_of(value: Any) -> list[Any] | None:
    """What a container or a plain object holds, in an order that is the same in every process; None for a value."""
    if isinstance(value, Mapping):
        return [part for pair in value.items() for part in pair]
    if isinstance(value, (tuple, list)):
        return list(value)
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if type(value).__repr__ is object.__dict__["__repr__"]:
        return list(getattr(value, "__dict__", {}).items())
    return None
