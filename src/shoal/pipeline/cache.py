"""The tables of a network on disk as they grow: latencies, fitted replacements, damages.

`tables.json` says which network, data and settings they belong to; `tables.jsonl` holds one finished measurement a
line, weights are next to it as safetensors. Nothing in it is measured twice, so that an interrupted run resumes and
another goal starts from finished tables.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, TypeAdapter
from torch import nn
from typing_extensions import TypedDict  # pydantic reads the one of typing only from Python 3.12

from shoal.errors import FolderError
from shoal.files.jsonl import JsonlFile
from shoal.files.locking import lock_folder
from shoal.files.reading import read_json, refusing
from shoal.files.tensors import read_tensors, write_tensors
from shoal.files.writing import remove_partial, write_text
from shoal.fingerprint import as_json, check_fingerprint
from shoal.plan import Replacement
from shoal.replace import (
    FittedReplacement,
    FoldedSpec,
    LinearAttentionSpec,
    ReplacementSpec,
    StudentSpec,
    build_replacement,
)

CandidateSpec = ReplacementSpec | StudentSpec | FoldedSpec | LinearAttentionSpec

FINGERPRINT, _LINES = "tables.json", "tables.jsonl"


class _LatencyLine(TypedDict):
    kind: Literal["prices"]
    source: str
    ms: dict[str, float]


DamageKind = Literal["damage", "refitted"]
"""Of a change as it is, or after a refit behind it."""


class _DamageLine(TypedDict):
    kind: DamageKind
    batch: int
    values: dict[str, list[float]]


class _StudentsLine(TypedDict):
    kind: Literal["students"]
    names: list[str]
    notes: list[str]


class _FittedMember(TypedDict):
    name: str
    stand_in: dict[str, Any]
    ridge: float | None
    r2_fit: float | None
    r2_held_out: float | None


class _FittedLine(TypedDict):
    kind: Literal["fitted"]
    file: Annotated[str, Field(pattern=r"^stand-ins-\d+\.safetensors$")]  # next to the tables, nowhere else
    members: list[_FittedMember]


_LINE: TypeAdapter[Any] = TypeAdapter(_LatencyLine | _DamageLine | _StudentsLine | _FittedLine)


class MeasurementCache:
    """The tables in a folder; without one they live in memory only.

    Args:
        path: created if missing.
        fingerprint: what the tables belong to, as plain data.
        legacy: values of `fingerprint` as version 0.1.0 wrote them.

    Raises:
        FolderError: the folder holds tables of something else, or cannot be written.
    """

    def __init__(
        self, path: Path | None, fingerprint: Mapping[str, Any], legacy: Mapping[str, Any] | None = None
    ) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = []
        self.lines: JsonlFile | None = None
        self.version = fingerprint.get("tables_version")
        if path is not None:
            self._check_fingerprint(path, as_json(fingerprint), legacy)
            self.lines = JsonlFile(path / _LINES)
            self.entries = self.lines.read()
            with refusing(
                FolderError, f"'{path / _LINES}' is damaged", "Remove the folder; the tables are made again."
            ):
                for line in self.entries:
                    _LINE.validate_python(line)

    def _check_fingerprint(self, path: Path, fingerprint: dict[str, Any], legacy: Mapping[str, Any] | None) -> None:
        with refusing(FolderError, f"cannot use '{path}' for the tables", "Choose another folder."):
            path.mkdir(parents=True, exist_ok=True)
            self.lock = lock_folder(path, shared=True)
            if not (path / FINGERPRINT).exists():
                write_text(path / FINGERPRINT, json.dumps(fingerprint, indent=2) + "\n")
            written = read_json(path / FINGERPRINT)
            if not isinstance(written, dict):
                raise ValueError(f"{FINGERPRINT} was not written by Shoal")
            self.version = written.get("tables_version")
        check_fingerprint(
            written,
            fingerprint,
            message=f"the tables in '{path}' were made for something else",
            hint="Give the same network, data and settings, or choose a new folder.",
            legacy=legacy,
        )
        remove_partial(path)

    def append(self, line: dict[str, Any]) -> None:
        """Keep one finished measurement."""
        if self.lines is not None:
            self.lines.append(line)
        self.entries.append(line)

    def latencies(self, source: str) -> dict[str, float]:
        """Milliseconds by key, of one source.

        Raises:
            FolderError: the tables are damaged.
        """
        lines = (line for line in self.entries if line["kind"] == "prices" and line["source"] == source)
        return {key: ms for line in lines for key, ms in line["ms"].items()}

    def add_latencies(self, source: str, ms: Mapping[str, float]) -> None:
        """Keep milliseconds by key, of one source."""
        self.append({"kind": "prices", "source": source, "ms": dict(ms)})

    def damages(self, kind: DamageKind = "damage") -> dict[str, dict[int, list[float]]]:
        """Damage of each sample by the name of the change and the index of the mini-batch."""
        damages: dict[str, dict[int, list[float]]] = {}
        for line in self.entries:
            if line["kind"] == kind:
                for name, values in line["values"].items():
                    damages.setdefault(name, {})[line["batch"]] = values
        return damages

    def add_damages(self, batch: int, values: Mapping[str, Sequence[float]], kind: DamageKind = "damage") -> None:
        """Keep the damages measured on one mini-batch."""
        self.append({"kind": kind, "batch": batch, "values": {name: list(damages) for name, damages in values.items()}})

    def fitted(self, specs: Sequence[CandidateSpec], like: torch.Tensor) -> list[FittedReplacement]:
        """Those of `specs` that were fitted before, with their weights.

        Raises:
            FolderError: their weights are missing or damaged.
        """
        if self.path is None:
            return []
        by_name = {spec.name: spec for spec in specs}
        fitted: list[FittedReplacement] = []
        for line in self.entries:
            members = [member for member in line.get("members", ()) if member["name"] in by_name]
            if members:
                fitted += _load(self.path / line["file"], members, by_name, like)
        return fitted

    def add_fitted(
        self, fitted: Sequence[FittedReplacement], names: Sequence[str], original: nn.Module | None = None
    ) -> None:
        """Keep replacements: the weights first, then the line that says they are complete.

        Args:
            fitted: the replacements.
            names: of each, unique in a network.
            original: weights that a replacement shares with this network are not kept.
        """
        if self.path is None:
            return
        file = f"stand-ins-{sum(line['kind'] == 'fitted' for line in self.entries)}.safetensors"
        state = {
            f"{name}/{key}": tensor
            for name, replacement in zip(names, fitted, strict=True)
            for key, tensor in _own_tensors(replacement, original).items()
        }
        members = [
            {
                "name": name,
                "stand_in": replacement.stand_in.model_dump(mode="json"),
                "ridge": replacement.ridge,
                "r2_fit": replacement.r2_fit,
                "r2_held_out": replacement.r2_held_out,
            }
            for name, replacement in zip(names, fitted, strict=True)
        ]
        write_tensors(self.path / file, state, {})
        self.append({"kind": "fitted", "file": file, "members": members})


def _own_tensors(replacement: FittedReplacement, original: nn.Module | None) -> dict[str, torch.Tensor]:
    """The state of a replacement; of a block that stays, without what lies where the original's weights do."""
    state: dict[str, torch.Tensor] = replacement.module.state_dict()
    if original is None or not replacement.stand_in.keeps_block:
        return state
    block = original.get_submodule(replacement.span.paths[0])
    theirs = {tensor.data_ptr() for tensor in block.state_dict().values()}
    return {key: tensor for key, tensor in state.items() if tensor.data_ptr() not in theirs}


def _load(
    path: Path, members: Sequence[dict[str, Any]], specs: Mapping[str, CandidateSpec], like: torch.Tensor
) -> list[FittedReplacement]:
    message, hint = f"cannot read '{path}'", "Remove the folder of the tables; they are made again."
    state, _ = read_tensors(path, FolderError, message, hint, keys=())
    with refusing(FolderError, message, hint):
        return [_materialize(specs[member["name"]], member, state, like) for member in members]


def _materialize(
    spec: CandidateSpec, member: dict[str, Any], state: Mapping[str, torch.Tensor], like: torch.Tensor
) -> FittedReplacement:
    replacement = Replacement.model_validate(member["stand_in"])
    module = build_replacement(replacement, like, spec.original)
    prefix = f"{spec.name}/"
    own = {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
    # What is not kept of a block that stays is the original's, of which the module was made.
    _, unexpected = module.load_state_dict(own, strict=not replacement.keeps_block)
    if unexpected or not own:
        raise ValueError(f"the weights of '{spec.name}' do not fit: {', '.join(unexpected[:3]) or 'there are none'}")
    r2 = member["r2_fit"], member["r2_held_out"]
    return FittedReplacement(spec.span, spec.kind, replacement, module, member["ridge"], *r2)
