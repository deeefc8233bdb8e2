"""docs/reliability.md from what was measured."""

import json
from pathlib import Path
from typing import Any

_PAGE = """# Reliability

What happens to a run that is killed or interrupted, that meets a full disk, or that meets a second one in its folder?
This page is written by `make faults` from measured results (`benchmarks/results/faults.json`); nothing in it is typed
by hand.

Every command runs on a six-block network and the embedded digits ({system}, Python {python}, seed {seed}), is
disturbed, and is then repeated as a user would repeat it. The run must end as one that nothing disturbed: the same
exit code, the same files and no other, every tensor the same to the bit, the same plan, the same journals, the same
record but for clocks. What a journal held when the process died must still stand there, and nothing may stand there
twice: no measurement is lost, none is made again.

## What was lost

{summary}{note}

## Killed

*At random*: `kill -9` after a random part of the command's time. *At writes*: right before a file is opened for
writing, flushed to disk, renamed, removed, or a folder is made or removed. *Inside writes*: by the kernel, in the
middle of the write that makes a file larger than a limit.

{kills}

## Asked to end

Ctrl-C and SIGTERM in turns, after a random part of the command's time. The command must end with exit code 130 or 143
and a word on how to go on, and leave no partial file in its folder and nothing among the system's temporary files.

{interruptions}

## A disk without room

Less room than the run needs, in even steps. The command must end with exit code 2 and the documented error, and leave
no partial file; with room made, the same command must end as if nothing had happened. Runs that fitted after all are
not counted.

{disks}

## Two processes, one folder

The first process is stopped (SIGSTOP) while it owns the folder. The second must be refused by name of the owner and
change no byte; the first then goes on to its end. Where the owner was killed instead, the next one takes over.

{owners}

## Hostile input

{fuzz}
"""


def write_page(path: Path, results: dict[str, Any], fuzz: Path) -> None:
    """Write the page; without results of `make fuzz` it says so."""
    values = {name: results[name] for name in ("system", "python", "seed")}
    text = _PAGE.format(
        **values,
        summary=_summary(results),
        note=f"\n\n{results['note']}" if "note" in results else "",
        kills=_kills(results),
        interruptions=_interruptions(results),
        disks=_table(("command", "how", "disks", "refused", "lost"), results["disks"]),
        owners=_table(("command", "lost"), results["owners"]),
        fuzz=_fuzz(fuzz),
    )
    path.write_text(text, encoding="utf-8")


def _summary(results: dict[str, Any]) -> str:
    kinds = {
        "random": ("Kills at random", "kills"),
        "writes": ("Kills at writes", "kills"),
        "inside": ("Kills inside writes", "kills"),
        "interruptions": ("Ctrl-C and SIGTERM", "interruptions"),
        "disks": ("Full disks", "refused"),
        "owners": ("Two processes on one folder", None),
    }
    rows = [
        {
            "fault": title,
            "times": sum(item[counted] for item in results[kind]) if counted else 2 * len(results[kind]),
            "lost": [text for item in results[kind] for text in item["lost"]],
        }
        for kind, (title, counted) in kinds.items()
    ]
    texts = [f"- {row['fault']}: {text.splitlines()[0][:300]}" for row in rows for text in row["lost"]]
    return "\n\n".join(filter(None, [_table(("fault", "times", "lost"), rows), "\n".join(texts)]))


def _kills(results: dict[str, Any]) -> str:
    titles = {"random": "at random", "writes": "at writes", "inside": "inside writes"}
    rows = [
        {
            "command": item["command"],
            "killed": title,
            "kills": item["kills"],
            "when it was finished": item["ends"].get("killed when it was finished", 0),
            "lost": item["lost"],
        }
        for kind, title in titles.items()
        for item in results[kind]
    ]
    return _table(("command", "killed", "kills", "when it was finished", "lost"), rows)


def _interruptions(results: dict[str, Any]) -> str:
    finished = "interrupted when it was finished"
    rows = [item | {"when it was finished": item["ends"].get(finished, 0)} for item in results["interruptions"]]
    return _table(("command", "interruptions", "when it was finished", "lost"), rows)


def _table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> str:
    def cell(name: str, value: Any) -> str:
        if name == "lost":
            return str(len(value)) if value else "nothing"
        return f"`shoal {value}`" if name == "command" else str(value)

    head = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join(head + [f"| {' | '.join(cell(name, row[name]) for name in columns)} |" for row in rows])


def _fuzz(path: Path) -> str:
    if not path.exists():
        return "Not measured yet."
    return _table(("reader", "inputs", "refused", "accepted", "lost"), json.loads(path.read_text())["readers"])
