"""What the checkpoint of a recovery belongs to: settings, and the very networks and samples it began with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from shoal.batches import Batch
from shoal.errors import FolderError, UsageError, WeightsError
from shoal.fingerprint import digest_of
from shoal.surgery import model_digest

_GIVEN = {"student": "another student", "teacher": "another teacher", "validation": "other validation samples"}


def ensure_dir(folder: str | Path) -> Path:
    """The folder, made if it is missing.

    Raises:
        FolderError: it cannot be made.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FolderError(f"cannot use '{path}' for checkpoints: {error.strerror}", "Choose another folder.") from error
    return path


def fingerprint(student: nn.Module, teacher: nn.Module, validation: Sequence[Batch]) -> dict[str, str]:
    """Digests of what a run begins with, before anything is learned."""
    return {
        "student": model_digest(student)[:16],
        "teacher": model_digest(teacher)[:16],
        "validation": digest_of(validation),
    }


def check_fingerprint(path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Refuse a checkpoint that belongs to something else.

    Args:
        path: of the checkpoint, for the message.
        theirs: what stands in it.
        ours: settings, budget, whether there is extra data, and as `given` what `given_of` returns.

    Raises:
        UsageError: other settings.
        WeightsError: another student or teacher, or other validation samples.
    """
    one, other = ({**said.get("settings", {}), **said} for said in (theirs, ours))
    wrong = [key for key in other if key not in ("settings", "given") and one.get(key) != other.get(key)]
    if wrong:
        raise UsageError(
            f"'{path}' belongs to a run with other settings: "
            + ", ".join(f"{key} was {one.get(key)!r}" for key in wrong[:3]),
            "Repeat the command that began it, or choose a new folder.",
        )
    before, now = theirs.get("given", {}), ours["given"]
    strangers = [words for key, words in _GIVEN.items() if before.get(key) != now[key]]
    if strangers:
        raise WeightsError(
            f"'{path}' is the checkpoint of a run that began with {' and '.join(strangers)}",
            "Give the very same networks and validation samples, in the same order, or choose a new folder.",
        )
