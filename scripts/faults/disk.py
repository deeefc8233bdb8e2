"""Commands on a full disk: a file system of its own where root can mount one, else a limit on the size of files."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from child import Child, no_file_above
from commands import OUT
from compare import differences
from kills import PATIENCE, Undisturbed, empty

_ROOM = 64 << 20
_DOCUMENTED = "folder"  # the kind of error of docs/errors.md


@contextmanager
def _own_disk(folder: Path, asked: bool) -> Iterator[bool]:
    """A small file system at `folder`, if asked for, and if this user may mount one."""
    mounted = (
        asked and os.geteuid() == 0 and _quietly("mount", "-t", "tmpfs", "-o", f"size={_ROOM}", "tmpfs", str(folder))
    )
    try:
        yield mounted
    finally:
        if mounted:
            _quietly("umount", str(folder))


def _quietly(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def full_disk(run: Undisturbed, home: Path, count: int, *, mount: bool) -> dict[str, Any]:
    """Run the command with `count` amounts of room, none of them enough; then make room and repeat it."""
    folder, total, lost, refused = empty(home / "full"), sum(run.sizes), [], 0
    with _own_disk(folder, mount) as mounted:
        for number in range(count):
            share = (number + 0.5) / count
            said = _on_own_disk(run, folder, round(share * total)) if mounted else _limited(run, folder, share)
            refused += said is not None
            lost += [f"room for {share:.0%}: {text}" for text in said or []]
    kind = "a file system without room" if mounted else "a limit on the size of files"
    return {"command": run.command.name, "how": kind, "disks": count, "refused": refused, "lost": lost}


def _on_own_disk(run: Undisturbed, folder: Path, room: int) -> list[str] | None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        file.write(bytes(_ROOM - room - 4 * os.sysconf("SC_PAGESIZE")))
    end = Child(run.command.words, folder).wait(PATIENCE)
    ballast.unlink()
    return _judged(run, folder, end)


def _limited(run: Undisturbed, folder: Path, share: float) -> list[str] | None:
    empty(folder)
    end = Child(run.command.words, folder, no_file_above(round(share * max(run.sizes)))).wait(PATIENCE)
    return _judged(run, folder, end)


def _judged(run: Undisturbed, folder: Path, end: Any) -> list[str] | None:
    """What was wrong about a command without room, and about its repetition with room; None where it had enough."""
    if end.code == run.end.code:
        return None
    said = []
    if end.code != 2 or end.error.get("kind") != _DOCUMENTED:
        said.append(f"exit code {end.code}, no documented error: {end.out}{end.err}"[-2000:])
    if leftovers := [path.name for path in folder.rglob("*.partial")]:
        said.append(f"left behind: {leftovers}")
    again = Child(run.command.words, folder).wait(PATIENCE)
    if again.code != run.end.code:
        return [*said, f"repeated with room: exit code {again.code}: {again.out}{again.err}"[:2000]]
    return said + differences(run.out, folder / OUT)
