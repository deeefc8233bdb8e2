"""What was seen at each look, as one JSON line, and for TensorBoard where it is installed."""

from pathlib import Path
from typing import Any

from shoal.files.jsonl import JsonlFile
from shoal.record import RecoveryEvaluation

METRICS = "recovery.jsonl"


class MetricsLog:
    """The looks of a run; with a folder also in its `recovery.jsonl` and for TensorBoard where it is installed.

    Args:
        folder: of the run, or None.
        steps: lines of later steps are dropped: the checkpoint does not know them; -1 for a run that begins.
    """

    def __init__(self, folder: Path | None, steps: int = -1) -> None:
        self.seen: list[dict[str, Any]] = []
        self.lines = JsonlFile(folder / METRICS) if folder is not None else None
        self.writer: Any = _writer(folder) if folder is not None else None
        if self.lines is not None and self.lines.path.exists():
            self.seen = [line for line in self.lines.read() if line.get("step", 0) <= steps]
            self.lines.rewrite(self.seen)

    def add(self, line: dict[str, Any]) -> None:
        """One look.

        Raises:
            FolderError: the disk is full, or the folder is gone.
        """
        self.seen.append(line)
        if self.lines is not None:
            self.lines.append(line)
        if self.writer is not None:
            for name, value in line.items():
                if isinstance(value, (int, float)) and name != "step":
                    self.writer.add_scalar(name, value, global_step=line["step"])
            self.writer.flush()

    def curve(self) -> list[RecoveryEvaluation]:
        """Every look so far for the record, those before an interruption too."""
        return [
            RecoveryEvaluation.model_validate(
                {name: line[name] for name in RecoveryEvaluation.model_fields if name in line}
            )
            for line in self.seen
        ]

    def close(self) -> None:
        """Nothing more will come."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None


def _writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))
