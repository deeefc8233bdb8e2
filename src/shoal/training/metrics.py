"""The metrics of a run: a row for each evaluation, as a line of JSON, and for trackers: see `training.tracking`."""

from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from shoal.errors import FolderError
from shoal.files.jsonl import JsonlFile
from shoal.files.reading import refusing
from shoal.training.tracking import Trackers

Row = TypeVar("Row", bound=BaseModel)


class MetricsLog(Generic[Row]):
    """The rows of a run; those of a run without a folder are held in memory alone.

    Args:
        row_type: of the rows.
        index: the field that counts them: 'step' or 'epoch'.
        file: where they are written, or None.
    """

    def __init__(self, row_type: type[Row], index: str, file: JsonlFile | None) -> None:
        self.row_type, self.index, self.file = row_type, index, file
        self.rows: list[Row] = []
        self.trackers = Trackers(file.path.parent if file is not None else Path("shoal-runs"))
        # Without being asked TensorBoard gets them, where it is installed.
        unasked = file is not None and not self.trackers
        self.writer: Any = _tensorboard_writer(file.path.parent) if file is not None and unasked else None

    def resume(self, last: int, count: int = 0) -> None:
        """Keep the rows up to the index `last`, those that the checkpoint includes; drop later ones.

        Args:
            last: negative for a new run, which starts with an empty file.
            count: how many rows there have to be.

        Raises:
            FolderError: rows are damaged, or missing.
        """
        if self.file is None or not (count or self.file.path.exists()):
            return
        lines = self.file.read()
        with refusing(FolderError, f"'{self.file.path}' cannot be read", "Choose a new --out to start again."):
            lines = [line for line in lines if line.get(self.index, 0) <= last]
            self.rows = [self._row(line) for line in lines]
            if len(lines) < count:
                raise ValueError(f"it holds {len(lines)} valid lines, the checkpoint includes {count}")
        self.file.rewrite(lines)

    def append(self, row: Row, **extra: Any) -> None:
        """Add a row.

        Args:
            row: of this evaluation.
            extra: further values for the file alone.

        Raises:
            FolderError: the disk is full, or the folder is missing.
        """
        self.rows.append(row)
        line = {**row.model_dump(mode="json"), **extra}
        if self.file is not None:
            self.file.append(line)  # first: nobody else keeps it
        self.trackers.log({name: value for name, value in line.items() if name != self.index}, line[self.index])
        if self.writer is not None:
            for name, value in line.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool) and name != self.index:
                    self.writer.add_scalar(name, value, global_step=line[self.index])
            self.writer.flush()

    def close(self) -> None:
        """Nothing more will be written."""
        self.trackers.close()
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def _row(self, line: dict[str, Any]) -> Row:
        return self.row_type.model_validate({name: line[name] for name in self.row_type.model_fields if name in line})


def _tensorboard_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))
