"""What was seen at each look, as one JSON line, and for TensorBoard where it is installed."""

import json
from pathlib import Path
from typing import Any

from shoal.record import RecoveryLook
from shoal.store import Lines, write_text

METRICS = "recovery.jsonl"


class History:
    """The looks of a run; with a folder also in its `recovery.jsonl` and in accelerate's tracker for TensorBoard.

    Args:
        folder: of the run, or None.
        steps: lines of later steps are dropped: the checkpoint does not know them; -1 for a run that begins.
    """

    def __init__(self, folder: Path | None, steps: int = -1) -> None:
        self.seen: list[dict[str, Any]] = []
        self.lines = Lines(folder / METRICS) if folder is not None else None
        self.tracker: Any = _tracker(folder) if folder is not None else None
        if self.lines is not None and self.lines.path.exists():
            self.seen = [line for line in self.lines.read() if line.get("step", 0) <= steps]
            write_text(self.lines.path, "".join(json.dumps(line) + "\n" for line in self.seen))

    def add(self, line: dict[str, Any]) -> None:
        """One look.

        Raises:
            FolderError: the disk is full, or the folder is gone.
        """
        self.seen.append(line)
        if self.lines is not None:
            self.lines.append(line)
        if self.tracker is not None:
            values = {name: value for name, value in line.items() if isinstance(value, (int, float)) and name != "step"}
            self.tracker.log(values, step=line["step"])

    def curve(self) -> list[RecoveryLook]:
        """Every look so far for the record, those before an interruption too."""
        return [
            RecoveryLook.model_validate({name: line[name] for name in RecoveryLook.model_fields if name in line})
            for line in self.seen
        ]

    def close(self) -> None:
        """Nothing more will come."""
        if self.tracker is not None:
            self.tracker.finish()
            self.tracker = None


def _tracker(folder: Path) -> Any:
    from accelerate.utils import is_tensorboard_available

    if not is_tensorboard_available():
        return None
    from accelerate.tracking import TensorBoardTracker

    tracker = TensorBoardTracker("tensorboard", logging_dir=str(folder))
    if hasattr(tracker, "start"):  # newer releases open their files apart from the constructor
        tracker.start()
    return tracker
