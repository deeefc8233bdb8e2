"""Commands killed at random moments, right before file operations and inside writes, then repeated until they end."""

import json
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from child import Child, Ended, Fault, count_operations, kill_at_operation, kill_inside_write
from commands import OUT, Command
from compare import differences, files_of, journal, repeated

PATIENCE = 300.0  # seconds after which a command hangs


@dataclass
class Undisturbed:
    """A run of a command that nothing disturbs, and what is known of it."""

    command: Command
    folder: Path
    end: Ended
    operations: int
    sizes: list[int] = field(default_factory=list)

    @property
    def out(self) -> Path:
        """Its output folder."""
        return self.folder / OUT


def undisturbed(command: Command, home: Path) -> Undisturbed:
    """Run it once, and count its file operations."""
    folder, tally = empty(home / "undisturbed"), home / "operations"
    tally.unlink(missing_ok=True)
    end = Child(command.words, folder, count_operations(tally)).wait(PATIENCE)
    if end.code not in (0, 1):
        raise RuntimeError(f"shoal {command.name} failed undisturbed: {end.out}{end.err}")
    sizes = [len(content) for content in files_of(folder / OUT).values()]
    return Undisturbed(command, folder, end, tally.stat().st_size, sizes)


def kill_at_random(run: Undisturbed, home: Path, count: int, chance: random.Random) -> dict[str, Any]:
    """Kill it `count` times after a random part of its time: the shortest so far, for machines vary."""
    times = [run.end.seconds]

    def attempt(folder: Path) -> Ended:
        ended = Child(run.command.words, folder).wait(chance.uniform(0.0, min(times)))
        if ended.code >= 0:  # it was done before
            times.append(ended.seconds)
        return ended

    return _campaign(run, home, count, lambda number: attempt)


def kill_at_writes(run: Undisturbed, home: Path, count: int) -> dict[str, Any]:
    """Kill it right before `count` of its file operations, spread evenly over the run."""
    points = [1 + number * (run.operations - 1) // max(count - 1, 1) for number in range(count)]
    return _campaign(run, home, count, lambda number: _faulty(run, kill_at_operation(points[number])))


def kill_inside_writes(run: Undisturbed, home: Path, count: int) -> dict[str, Any]:
    """Kill it inside a write: as soon as a file grows above a size that at least one of its files has."""
    largest = max(run.sizes)
    sizes = [round((number + 0.5) * largest / count) for number in range(count)]
    return _campaign(run, home, count, lambda number: _faulty(run, kill_inside_write(sizes[number])))


def _faulty(run: Undisturbed, fault: Fault) -> Callable[[Path], Ended]:
    return lambda folder: Child(run.command.words, folder, fault).wait(PATIENCE)


def _campaign(
    run: Undisturbed, home: Path, count: int, attempt_of: Callable[[int], Callable[[Path], Ended]]
) -> dict[str, Any]:
    """Kill, repeat the same command, compare; `count` kills that met an unfinished run."""
    ends, lost, number, tried = Counter[str](), [], 0, 0
    while number < count and tried < 3 * count + 5:
        tried += 1
        folder = empty(home / "killed")
        killed = attempt_of(number)(folder)
        if killed.code not in (-signal.SIGKILL, -signal.SIGXFSZ):
            ends["ended before the kill"] += 1
            if killed.code != run.end.code:
                lost.append(f"kill {number}: exit code {killed.code}: {killed.out}{killed.err}"[:2000])
            continue
        number += 1
        finished = (folder / OUT / "record.json").exists()
        lost += [f"kill {number}: {said}" for said in repeat(run, folder, finished)]
        ends["killed when it was finished" if finished else "killed, repeated to the end"] += 1
    return {"command": run.command.name, "kills": number, "ends": dict(ends), "lost": lost}


def repeat(run: Undisturbed, folder: Path, finished: bool) -> list[str]:
    """Repeat the command in the folder of a killed one; what was lost, made twice or came out otherwise."""
    before = {name: journal(folder / OUT, name) for name in run.command.journals}
    again = Child(run.command.words, folder).wait(PATIENCE)
    if finished:  # it says so, and touches nothing
        said = [] if "finished run" in json.dumps(again.error) else [f"a finished run was not known: {again.out}"]
        return said + differences(run.out, folder / OUT)
    if again.code != run.end.code:
        return [f"repeated: exit code {again.code}: {again.out}{again.err}"[:2000]]
    grown = [said for name in before for said in repeated(before[name], journal(folder / OUT, name))]
    return grown + differences(run.out, folder / OUT)


def empty(folder: Path) -> Path:
    """The folder, with nothing in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
