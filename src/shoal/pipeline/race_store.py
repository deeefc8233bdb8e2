"""What an interrupted race resumes from: the plans that contend, each finished rung, and the students that pause.

Latencies are measured anew in every process, and the contenders made from them may come out differently: so they are
kept as well. Students that are out are removed at once.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path as FilePath
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from shoal.errors import FolderError, UsageError
from shoal.files.jsonl import JsonlFile
from shoal.files.reading import refusing
from shoal.fingerprint import as_json, check_fingerprint
from shoal.pipeline.plan_measure import MeasuredPlan
from shoal.plan import Edge, Path
from shoal.preserve import own_
from shoal.record import BudgetCheck
from shoal.recover.checkpoint import ensure_dir
from shoal.recover.rungs import RungResult
from shoal.store.checkpoint import load_checkpoint, save_checkpoint

FOLDER, _LINES, _START = "race", "race.jsonl", "start.safetensors"


@dataclass(frozen=True)
class Shortlist:
    """The plans of one budget: all that were built, those to choose from, and what there is to say about them.

    `check` is that of the budget, where there is only one to choose from; `steps` are those of the whole recovery that
    a race is the beginning of.
    """

    plans: list[MeasuredPlan]
    contenders: list[MeasuredPlan]
    notes: list[str] = field(default_factory=list)
    check: BudgetCheck | None = None
    steps: int = 0


def key_of(path: Path) -> str:
    """The name of a plan in the folder of a race."""
    return hashlib.sha256(json.dumps(path.edges).encode()).hexdigest()[:12]


class RaceStore:
    """The folder of one race.

    Args:
        folder: of the recovery; without one a temporary one is used, which is gone afterwards.
        fingerprint: all that the race depends on but the tables.

    Raises:
        FolderError: it cannot be made or read.
        UsageError: it holds the race of another network, goal or data, or with other settings.
    """

    def __init__(self, folder: FilePath | None, fingerprint: Mapping[str, Any]) -> None:
        self.fingerprint = as_json(fingerprint)
        self._temporary = TemporaryDirectory(prefix="shoal-race-") if folder is None else None
        self.root = FilePath(self._temporary.name) if self._temporary else ensure_dir(folder / FOLDER)  # type: ignore[operator]
        self.lines = JsonlFile(self.root / _LINES)
        self.entries = self.lines.read()
        if self.entries:
            check_fingerprint(
                self.entries[0].get("claim"),
                self.fingerprint,
                message=f"'{self.root}' holds the race of another network, goal or data, or with other settings",
                hint="Repeat that run, or give another folder.",
                error=UsageError,
            )

    def shortlist(self, edges: Sequence[Edge]) -> Shortlist | None:
        """The plans of the race that was begun, if the tables still have their changes; else it begins anew."""
        begun = self.entries[0] if self.entries else {}
        if begun.get("edges") != _digest(edges) or "steps" not in begun:  # the latter: of an older version
            self.entries = []
            return None
        with refusing(FolderError, f"'{self.lines.path}' is damaged", "Remove the folder; the race begins anew."):
            first = self.entries[0]
            plans = [_plan_from(line) for line in first["plans"]]
            contenders = [plans[index] for index in first["contenders"]]
            return Shortlist(plans, contenders, list(first["notes"]), steps=int(first["steps"]))

    def begin(self, shortlist: Shortlist, edges: Sequence[Edge]) -> None:
        """Keep the contenders; whatever an earlier race left is removed."""
        contenders = [shortlist.plans.index(plan) for plan in shortlist.contenders]
        plans = [asdict(plan) | {"path": plan.path.model_dump()} for plan in shortlist.plans]
        line = {"claim": self.fingerprint, "edges": _digest(edges), "plans": plans, "contenders": contenders}
        self.entries = [as_json(line | {"notes": shortlist.notes, "steps": shortlist.steps})]
        self.lines.rewrite(self.entries)
        keys = {key_of(plan.path) for plan in shortlist.contenders}
        for place in self.root.iterdir():
            if place.is_dir() and place.name not in keys:
                shutil.rmtree(place, ignore_errors=True)

    def finished(self, path: Path, rung: int) -> RungResult | None:
        """What a plan came to at a rung, if it was there."""
        key = key_of(path)
        for line in self.entries[1:]:
            if (line["plan"], line["rung"]) == (key, rung):
                return RungResult(**line["result"])
        return None

    def add(self, path: Path, rung: int, result: RungResult) -> None:
        """Keep a finished rung."""
        line = {"plan": key_of(path), "rung": rung, "result": asdict(result)}
        self.lines.append(line)
        self.entries.append(line)

    def folder(self, path: Path) -> FilePath:
        """Where the student of a plan pauses."""
        return ensure_dir(self.root / key_of(path))

    def drop(self, path: Path) -> None:
        """Remove the student of a plan that is out."""
        shutil.rmtree(self.root / key_of(path), ignore_errors=True)

    def keep_start(self, path: Path, network: nn.Module) -> None:
        """Keep the weights that a plan begins with.

        Raises:
            FolderError: the disk is full, or the folder is not writable.
        """
        tensors = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
        save_checkpoint(self.folder(path) / _START, tensors, {"plan": key_of(path)})

    def load_start_(self, path: Path, network: nn.Module) -> nn.Module:
        """Put the weights that a plan begins with into its network.

        Raises:
            WeightsError: they are missing or damaged.
        """
        tensors, _ = load_checkpoint(self.folder(path) / _START)
        with torch.no_grad():
            # What a module keeps besides tensors is not on the disk.
            own_(network).load_state_dict(tensors, strict=False)
        return network

    @staticmethod
    def remove(folder: FilePath) -> None:
        """Remove what a race left in the folder of a recovery: what its winner has learned is kept elsewhere."""
        shutil.rmtree(folder / FOLDER, ignore_errors=True)


def _plan_from(line: Mapping[str, Any]) -> MeasuredPlan:
    return MeasuredPlan(**{**line, "path": Path.model_validate(line["path"])})


def _digest(edges: Sequence[Edge]) -> str:
    """Of the changes, not of what they cost: that is measured anew."""
    changes = [(edge.start, edge.stop, edge.action, edge.kind) for edge in edges]
    return hashlib.sha256(json.dumps(changes).encode()).hexdigest()[:16]
