"""Two processes on one folder: the second is refused, whatever happens to the first one."""

import json
import signal
import time
from pathlib import Path
from typing import Any

from child import Child
from commands import OUT
from compare import differences, files_of
from kills import PATIENCE, Undisturbed, empty


def two_owners(run: Undisturbed, home: Path) -> dict[str, Any]:
    """Stop a command half way, start it again beside itself, let the first one end; then kill one that is stopped."""
    lost = _second_is_refused(run, empty(home / "owners")) + _killed_owner_gives_way(run, empty(home / "owners"))
    return {"command": run.command.name, "lost": lost}


def _stopped(run: Undisturbed, folder: Path) -> Child:
    """The command, stopped once the folder is its own."""
    child = Child(run.command.words, folder)
    until = time.monotonic() + PATIENCE
    while not (folder / OUT / "run.json").exists() and time.monotonic() < until:
        time.sleep(0.005)
    child.signal(signal.SIGSTOP)
    return child


def _second_is_refused(run: Undisturbed, folder: Path) -> list[str]:
    first = _stopped(run, folder)
    before = files_of(folder)
    second = Child(run.command.words, folder).wait(PATIENCE)
    said = []
    if second.code != 2 or str(first.pid) not in json.dumps(second.error):
        said.append(f"the second was not refused by name of the owner: {second.code}: {second.out}{second.err}"[:2000])
    if files_of(folder) != before:
        said.append("the second one changed files")
    first.signal(signal.SIGCONT)
    end = first.wait(PATIENCE)
    if end.code != run.end.code:
        return [*said, f"the first ended in exit code {end.code}: {end.out}{end.err}"[:2000]]
    return said + differences(run.out, folder / OUT)


def _killed_owner_gives_way(run: Undisturbed, folder: Path) -> list[str]:
    first = _stopped(run, folder)
    first.signal(signal.SIGKILL)
    first.wait()
    end = Child(run.command.words, folder).wait(PATIENCE)
    if end.code != run.end.code:
        return [f"after the owner was killed: exit code {end.code}: {end.out}{end.err}"[:2000]]
    return differences(run.out, folder / OUT)
