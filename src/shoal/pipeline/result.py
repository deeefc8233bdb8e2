"""What compress() returns: the network, the plan, the record, and how to keep them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch import nn

from shoal.arguments import as_path
from shoal.batches import Batch
from shoal.errors import ExportError, FolderError
from shoal.files.reading import refusing
from shoal.files.writing import write_text
from shoal.pipeline.greedy import RemovalChoice
from shoal.plan import Fold, Plan, Remove, Replace
from shoal.record import Record, Recovery
from shoal.report import front_csv, render
from shoal.store import check_reload, check_savable, export_program, save
from shoal.store.folder import FRONT, PROGRAM, REPORT
from shoal.surgery import FoldResult


@dataclass(frozen=True)
class CompressedModel:
    """A changed copy of the network, how it was chosen, and what was done to it.

    Args:
        model: the network, in eval mode.
        choice: the blocks and why these.
        actions: what a plan replays.
        notes: what happened on the way, for the record.
        folded: what was folded, if it was.
        recovery: what recovery came to, if there was one.
    """

    model: nn.Module
    choice: RemovalChoice
    actions: list[Remove | Replace | Fold]
    notes: list[str] = field(default_factory=list)
    folded: FoldResult | None = None
    recovery: Recovery | None = None


@dataclass(frozen=True)
class CompressResult:
    """One finished run.

    Args:
        model: the new network, in eval mode; an ordinary module.
        plan: rebuilds it from the original factory.
        record: every number.
        example: a mini-batch the network was traced with.
    """

    model: nn.Module
    plan: Plan
    record: Record
    example: Batch

    def save(
        self, folder: str | Path, *, factory: Callable[[], nn.Module] | None = None, claimed: bool = False
    ) -> Record:
        """Write model, plan, program, report and record into a folder, the record last.

        Args:
            folder: created if missing.
            factory: of the original network, a function without arguments. With it the folder is loaded again
                before it counts as written; without it only a run of the command line is.
            claimed: the folder is that of the run which made this result; else it must be empty.

        Returns:
            The record as written, with a warning where no `.pt2` could be made.

        Raises:
            UsageError: `folder` is no path.
            FolderError: not empty, not writable, or the disk is full.
            WeightsError: a folder cannot hold the network, or what is loaded again answers otherwise.
        """
        check_savable(self.model)
        path = as_path("folder", folder)
        with refusing(FolderError, f"cannot use '{path}'", "Choose another folder."):
            path.mkdir(parents=True, exist_ok=True)
            occupied = not claimed and any(path.iterdir())
        if occupied:
            raise FolderError(f"the folder '{path}' is not empty", "Choose a new folder.")
        record = self._with_program(path)
        write_text(path / REPORT, render(record))
        if record.planning is not None:
            write_text(path / FRONT, front_csv(record))
        known = factory is not None or self.plan.model is not None
        check = partial(check_reload, factory=factory) if known else None
        save(path, self.model, self.plan, record, example=self.example, check=check)
        return record

    def _with_program(self, path: Path) -> Record:
        try:
            export_program(self.model, self.example, path / PROGRAM)
        except ExportError as error:
            warning = f"no model.pt2 was written: {error.message}"
            return self.record.model_copy(update={"warnings": [*self.record.warnings, warning]})
        return self.record
