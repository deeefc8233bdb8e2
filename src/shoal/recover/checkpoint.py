"""What the checkpoint of a recovery belongs to: its configuration, and the networks and samples it began with."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from shoal import fingerprint as fingerprints
from shoal.arguments import as_path
from shoal.batches import Batch
from shoal.errors import FolderError, UsageError, WeightsError
from shoal.files.reading import refusing
from shoal.fingerprint import digest_of, legacy_digest_of
from shoal.surgery import model_digest

_INPUTS = {"student": "another student", "teacher": "another teacher", "validation": "other validation samples"}


def ensure_dir(folder: str | Path) -> Path:
    """The folder, created if it is missing.

    Raises:
        UsageError: it is no path.
        FolderError: it cannot be created.
    """
    path = as_path("folder", folder)
    with refusing(FolderError, f"cannot use '{path}' for checkpoints", "Choose another folder."):
        path.mkdir(parents=True, exist_ok=True)
    return path


def fingerprint(student: nn.Module, teacher: nn.Module, validation: Sequence[Batch]) -> dict[str, list[str]]:
    """Digests of what a run begins with: that of today first, then those that older versions wrote."""
    return {
        "student": [model_digest(student)[:16]],
        "teacher": [model_digest(teacher)[:16]],
        "validation": [digest_of(validation), legacy_digest_of(validation)],
    }


def check_fingerprint(
    path: Path, recorded: Mapping[str, Any], run: Mapping[str, Any], inputs: Mapping[str, Sequence[str]]
) -> None:
    """Refuse a checkpoint that belongs to another run.

    Args:
        path: of the checkpoint, for the message.
        recorded: what it says about its run; its inputs as `given`.
        run: settings and budget of this run.
        inputs: what `fingerprint` returns.

    Raises:
        UsageError: other settings.
        WeightsError: another student or teacher, or other validation samples.
    """
    fingerprints.check_fingerprint(
        _flat({key: value for key, value in recorded.items() if key != "given"}),
        _flat(run),
        message=f"'{path}' belongs to a run with other settings",
        hint="Repeat the command that began it, or choose a new folder.",
        error=UsageError,
    )
    digests = recorded.get("given", {})
    different = [text for key, text in _INPUTS.items() if digests.get(key) not in inputs[key]]
    if different:
        raise WeightsError(
            f"'{path}' is the checkpoint of a run that began with {' and '.join(different)}",
            "Give the very same networks and validation samples, in the same order, or choose a new folder.",
        )


def _flat(run: Mapping[str, Any]) -> dict[str, Any]:
    """The settings beside the rest."""
    return {**run.get("settings", {}), **{key: value for key, value in run.items() if key != "settings"}}
