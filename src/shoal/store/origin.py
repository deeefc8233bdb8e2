"""Where a network of transformers came from: its folder, or its files from the hub on this machine."""

from contextlib import suppress
from pathlib import Path
from typing import Any


def source_folder(model: Any) -> Path | None:
    """The folder the network was loaded from, or that of its files from the hub on this machine."""
    name = str(getattr(model, "name_or_path", "") or "")
    if not name or Path(name).is_dir():
        return Path(name) if name else None
    from transformers.utils import cached_file

    with suppress(OSError, ValueError):
        path = cached_file(name, "config.json", local_files_only=True)
        return Path(path).parent if path else None
    return None


def is_own(file: Path, source: Path) -> bool:
    """Whether a file lies in its folder, or as a link in the hub's cache where the folder does: nothing else is copied.

    A stranger's folder could hold a link to a private file.
    """
    home = source.resolve()
    if home.parent.name == "snapshots" and home.parent.parent.name.startswith("models--"):
        from huggingface_hub.constants import HF_HUB_CACHE

        if Path(HF_HUB_CACHE).resolve() == home.parent.parent.parent:
            home = home.parent.parent
    return file.resolve().is_relative_to(home)
