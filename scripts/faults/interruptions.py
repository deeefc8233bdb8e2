"""Commands that are asked to end at random moments, by Ctrl-C and by SIGTERM, then repeated until they end."""

import os
import random
import signal
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from child import Child, Ended
from commands import OUT
from kills import Undisturbed, empty, repeat

_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
# Before the command listens to signals Python and the system end it as they always do.
_TOO_EARLY = (-signal.SIGTERM, 70)


def interrupt_at_random(run: Undisturbed, home: Path, count: int, chance: random.Random) -> dict[str, Any]:
    """Interrupt it `count` times after a random part of its time; look at what it says, leaves, and comes to later."""
    ends, lost, number, tried, longest = Counter[str](), [], 0, 0, run.end.seconds
    while number < count and tried < 3 * count + 5:
        tried += 1
        folder, temporary = empty(home / "interrupted"), empty(home / "temporary")
        sent = (signal.SIGINT, signal.SIGTERM)[number % 2]
        end = Child(run.command.words, folder, lambda _, place=temporary: _use(place)).wait(
            chance.uniform(0.0, longest), sent
        )
        if end.code in _TOO_EARLY or end.code == run.end.code:
            longest = min(longest, end.seconds) if end.code == run.end.code else longest
            ends["ended before"] += 1
            continue
        number += 1
        finished = (folder / OUT / "record.json").exists()
        lost += [f"{sent.name} {number}: {text}" for text in _judged(end, _CODES[sent], folder, temporary)]
        lost += [f"{sent.name} {number}: {text}" for text in repeat(run, folder, finished)]
        ends["interrupted when it was finished" if finished else "interrupted, repeated to the end"] += 1
    return {"command": run.command.name, "interruptions": number, "ends": dict(ends), "lost": lost}


def _use(temporary: Path) -> None:
    os.environ["TMPDIR"] = str(temporary)
    tempfile.tempdir = None


def _judged(end: Ended, code: int, folder: Path, temporary: Path) -> list[str]:
    """What was wrong about the way it left."""
    wrong = []
    if end.code != code or "interrupted." not in end.err or "Traceback" in end.err:
        wrong.append(f"exit code {end.code}, expected {code} and a word: {end.out}{end.err}"[-2000:])
    if left := [path.name for path in (*folder.rglob("*.partial"), *temporary.iterdir())]:
        wrong.append(f"left behind: {left}")
    return wrong
