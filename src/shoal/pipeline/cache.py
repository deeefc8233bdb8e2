"""The tables of a network on disk as they grow: latencies, fitted stand-ins, damages.

`tables.json` says which network, data and settings they belong to; `tables.jsonl` holds one finished measurement a
line, weights lie beside it as safetensors. What stands there is never measured again, so that an interrupted run goes
on and another goal starts from finished tables.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict  # pydantic reads the one of typing only from Python 3.12

from shoal.errors import FolderError
from shoal.files.jsonl import JsonlFile
from shoal.files.locking import lock_folder
from shoal.files.reading import read_json, refusing
from shoal.files.tensors import read_tensors, write_tensors
from shoal.files.writing import remove_partial, write_text
from shoal.fingerprint import as_json, check_fingerprint
from shoal.plan import Replacement
from shoal.replace import FittedReplacement, ReplacementSpec, StudentSpec, build_replacement

Wish = ReplacementSpec | StudentSpec

CLAIM, _LINES = "tables.json", "tables.jsonl"


class _Prices(TypedDict):
    kind: Literal["prices"]
    source: str
    ms: dict[str, float]


class _Damage(TypedDict):
    kind: Literal["damage"]
    batch: int
    values: dict[str, list[float]]


class _Students(TypedDict):
    kind: Literal["students"]
    names: list[str]
    notes: list[str]


class _Member(TypedDict):
    name: str
    stand_in: dict[str, Any]
    ridge: float | None
    r2_fit: float | None
    r2_held_out: float | None


class _FittedLine(TypedDict):
    kind: Literal["fitted"]
    file: Annotated[str, Field(pattern=r"^stand-ins-\d+\.safetensors$")]  # beside the tables, nowhere else
    members: list[_Member]


_LINE: TypeAdapter[Any] = TypeAdapter(_Prices | _Damage | _Students | _FittedLine)


class MeasurementCache:
    """The tables in a folder; without one they live in memory only.

    Args:
        path: created if missing.
        claim: what the tables belong to, as plain data.
        legacy: values of `claim` as version 0.1.0 wrote them.

    Raises:
        FolderError: the folder holds tables of something else, or cannot be written.
    """

    def __init__(self, path: Path | None, claim: Mapping[str, Any], legacy: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = []
        self.lines: JsonlFile | None = None
        if path is not None:
            self._claim(path, as_json(claim), legacy)
            self.lines = JsonlFile(path / _LINES)
            self.entries = self.lines.read()
            with refusing(
                FolderError, f"'{path / _LINES}' is damaged", "Remove the folder; the tables are made again."
            ):
                for line in self.entries:
                    _LINE.validate_python(line)

    def _claim(self, path: Path, claim: dict[str, Any], legacy: Mapping[str, Any] | None) -> None:
        with refusing(FolderError, f"cannot use '{path}' for the tables", "Choose another folder."):
            path.mkdir(parents=True, exist_ok=True)
            self.lock = lock_folder(path, shared=True)
            if not (path / CLAIM).exists():
                write_text(path / CLAIM, json.dumps(claim, indent=2) + "\n")
            theirs = read_json(path / CLAIM)
            if not isinstance(theirs, dict):
                raise ValueError(f"{CLAIM} was not written by Shoal")
        check_fingerprint(
            theirs,
            claim,
            message=f"the tables in '{path}' were made for something else",
            hint="Give the same network, data and settings, or choose a new folder.",
            legacy=legacy,
        )
        remove_partial(path)

    def add(self, line: dict[str, Any]) -> None:
        """Keep one finished measurement."""
        if self.lines is not None:
            self.lines.append(line)
        self.entries.append(line)

    def prices(self, source: str) -> dict[str, float]:
        """Milliseconds by key, of one clock.

        Raises:
            FolderError: the tables are damaged.
        """
        lines = (one for one in self.entries if one["kind"] == "prices" and one["source"] == source)
        return {key: ms for line in lines for key, ms in line["ms"].items()}

    def add_prices(self, source: str, ms: Mapping[str, float]) -> None:
        """Keep milliseconds by key, of one clock."""
        self.add({"kind": "prices", "source": source, "ms": dict(ms)})

    def damages(self) -> dict[str, dict[int, list[float]]]:
        """Damage of each sample by the name of the change and the number of the mini-batch."""
        found: dict[str, dict[int, list[float]]] = {}
        for line in self.entries:
            if line["kind"] == "damage":
                for name, values in line["values"].items():
                    found.setdefault(name, {})[line["batch"]] = values
        return found

    def add_damages(self, batch: int, values: Mapping[str, Sequence[float]]) -> None:
        """Keep the damages measured on one mini-batch."""
        self.add({"kind": "damage", "batch": batch, "values": {name: list(one) for name, one in values.items()}})

    def fitted(self, wanted: Sequence[Wish], like: torch.Tensor) -> list[FittedReplacement]:
        """Those of `wanted` that were fitted before, built and filled.

        Raises:
            FolderError: their weights are missing or damaged.
        """
        if self.path is None:
            return []
        by_name = {one.name: one for one in wanted}
        found = []
        for line in self.entries:
            members = [one for one in line.get("members", ()) if one["name"] in by_name]
            if members:
                found += _restored(self.path / line["file"], members, by_name, like)
        return found

    def add_fitted(self, fitted: Sequence[FittedReplacement], names: Sequence[str]) -> None:
        """Keep stand-ins: the weights first, then the line that says they are whole."""
        if self.path is None:
            return
        file = f"stand-ins-{sum(one['kind'] == 'fitted' for one in self.entries)}.safetensors"
        state = {
            f"{name}/{key}": tensor
            for name, one in zip(names, fitted, strict=True)
            for key, tensor in one.module.state_dict().items()
        }
        members = [
            {
                "name": name,
                "stand_in": one.stand_in.model_dump(mode="json"),
                "ridge": one.ridge,
                "r2_fit": one.r2_fit,
                "r2_held_out": one.r2_held_out,
            }
            for name, one in zip(names, fitted, strict=True)
        ]

        write_tensors(self.path / file, state, {})
        self.add({"kind": "fitted", "file": file, "members": members})


def _restored(
    path: Path, members: Sequence[dict[str, Any]], wanted: Mapping[str, Wish], like: torch.Tensor
) -> list[FittedReplacement]:
    message, hint = f"cannot read '{path}'", "Remove the folder of the tables; they are made again."
    state, _ = read_tensors(path, FolderError, message, hint, keys=())
    with refusing(FolderError, message, hint):
        return [_filled(wanted[one["name"]], one, state, like) for one in members]


def _filled(
    one: Wish, line: dict[str, Any], state: Mapping[str, torch.Tensor], like: torch.Tensor
) -> FittedReplacement:
    stand_in = Replacement.model_validate(line["stand_in"])
    module = build_replacement(stand_in, like, one.original)
    own = {key.removeprefix(f"{one.name}/"): tensor for key, tensor in state.items() if key.startswith(f"{one.name}/")}
    module.load_state_dict(own)
    return FittedReplacement(one.span, one.kind, stand_in, module, line["ridge"], line["r2_fit"], line["r2_held_out"])
