"""The metrics of a run as one JSON line an epoch, and for TensorBoard where it is installed."""

from pathlib import Path
from typing import Any

from shoal.errors import FolderError
from shoal.files.jsonl import JsonlFile
from shoal.files.reading import refusing
from shoal.training import EpochRow

METRICS = "metrics.jsonl"


class MetricsFile:
    """`metrics.jsonl` in the folder of a run; without a folder nothing is kept.

    Args:
        folder: of the run, or None.
    """

    def __init__(self, folder: Path | None) -> None:
        self.lines = JsonlFile(folder / METRICS) if folder is not None else None
        self.board: Any = _board(folder) if folder is not None else None

    def restart(self, epochs: int) -> list[EpochRow]:
        """Keep the lines of the first `epochs` epochs, those the checkpoint knows, and return them.

        Raises:
            FolderError: they are damaged, or some are missing.
        """
        if self.lines is None or not (epochs or self.lines.path.exists()):
            return []
        lines = self.lines.read()[:epochs]
        with refusing(FolderError, f"'{self.lines.path}' cannot be read", "Choose a new --out to start again."):
            rows = [EpochRow.model_validate(line) for line in lines]
            if len(rows) < epochs:
                raise ValueError(f"it holds {len(rows)} sound lines, the checkpoint is of epoch {epochs}")
        self.lines.rewrite(lines)
        return rows

    def append(self, row: EpochRow) -> None:
        """Add one epoch.

        Raises:
            FolderError: the disk is full, or the folder is gone.
        """
        if self.lines is None:
            return
        self.lines.append(row.model_dump(mode="json"))
        if self.board is not None:
            for name in ("rate", "loss", "train_error", "test_error", "alive", "seconds"):
                value = getattr(row, name)
                if value is not None:
                    self.board.add_scalar(name, value, row.epoch)


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))
