"""The metrics of a run as one JSON line an epoch, and for TensorBoard where it is installed."""

import json
import os
from pathlib import Path
from typing import Any

from shoal.errors import FolderError
from shoal.store import write_text
from shoal.training import EpochRow

METRICS = "metrics.jsonl"


class MetricsFile:
    """`metrics.jsonl` in the folder of a run; without a folder nothing is kept.

    Args:
        folder: of the run, or None.
    """

    def __init__(self, folder: Path | None) -> None:
        self.path = folder / METRICS if folder is not None else None
        self.board: Any = _board(folder) if folder is not None else None

    def restart(self, epochs: int) -> list[EpochRow]:
        """Keep the lines of the first `epochs` epochs, those the checkpoint knows, and return them."""
        if self.path is None or not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines()[:epochs]
        try:
            rows = [EpochRow.model_validate_json(line) for line in lines]
        except ValueError as error:
            raise FolderError(f"'{self.path}' cannot be read: {error}", "Choose a new --out to start again.") from error
        write_text(self.path, "".join(line + "\n" for line in lines))
        return rows

    def append(self, row: EpochRow) -> None:
        """Add one epoch.

        Raises:
            FolderError: the disk is full, or the folder is gone.
        """
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row.model_dump(mode="json")) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise FolderError(
                f"cannot write '{self.path}': {error.strerror}", "Free some space, then resume."
            ) from error
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
