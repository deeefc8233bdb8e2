"""Kill, starve and double every command, and write down what was lost: `python scripts/faults --help`."""

import argparse
import contextlib
import io
import json
import os
import platform
import random
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from commands import COMMANDS, Command
from disk import full_disk
from interruptions import interrupt_at_random
from kills import kill_at_random, kill_at_writes, kill_inside_writes, undisturbed
from owners import two_owners
from page import write_page

from shoal.cli import main as shoal

_COUNTED = ("random", "writes", "inside", "interruptions")
_KINDS = (*_COUNTED, "disks", "owners")


def main() -> None:
    """Carry out the campaign; exit code 1 where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/faults.json"))
    parser.add_argument("--page", type=Path, help="also write this page from the results")
    parser.add_argument("--fuzz", type=Path, default=Path("benchmarks/results/fuzz.json"))
    parser.add_argument("--only-page", action="store_true", help="disturb nothing, write the page again")
    parser.add_argument("--random", type=int, default=100, help="random kills, over all commands")
    parser.add_argument("--writes", type=int, default=100, help="kills at file operations, over all commands")
    parser.add_argument("--inside", type=int, default=20, help="kills inside writes, over all commands")
    parser.add_argument("--interruptions", type=int, default=50, help="Ctrl-C and SIGTERM, over all commands")
    parser.add_argument("--disks", type=int, default=4, help="full disks for each command")
    parser.add_argument("--mount", action="store_true", help="as root: full disks are small file systems, not limits")
    parser.add_argument("--commands", default="", help="names, separated by commas; all by default")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not options.only_page:
        _campaign(options)
    results = json.loads(options.results.read_text(encoding="utf-8"))
    if options.page:
        write_page(options.page, results, options.fuzz)
    sys.exit(any(item["lost"] for kind in _KINDS for item in results[kind]))


def _campaign(options: argparse.Namespace) -> None:
    """Disturb one command after another; the results are written after each."""
    names = options.commands.split(",") if options.commands else [command.name for command in COMMANDS]
    chosen = [command for command in COMMANDS if command.name in names]
    found: dict[str, Any] = {"seed": options.seed, "python": platform.python_version(), "system": platform.system()}
    found |= {kind: [] for kind in _KINDS}
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        _import_everything(Path(folder))
        for command in chosen:
            home = Path(folder, command.name.replace(" ", ""))
            run = undisturbed(command, home)
            share = {kind: -(-getattr(options, kind) // len(chosen)) for kind in _COUNTED}
            found["random"].append(kill_at_random(run, home, share["random"], chance))
            found["writes"].append(kill_at_writes(run, home, share["writes"]))
            found["inside"].append(kill_inside_writes(run, home, share["inside"]))
            found["interruptions"].append(interrupt_at_random(run, home, share["interruptions"], chance))
            found["disks"].append(full_disk(run, home, options.disks, mount=options.mount))
            found["owners"].append(two_owners(run, home))
            _keep(found, options.results)


def _keep(found: dict[str, Any], results: Path) -> None:
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for kind, items in found.items():
        if isinstance(items, list):
            print(kind, json.dumps(items[-1]), file=sys.stderr, flush=True)


def _import_everything(folder: Path) -> None:
    """Run a command here, so that its forks need import nothing; time latencies for a moment only."""
    timing = import_module("shoal.measure.latency")
    take_turns = timing._take_turns
    timing._take_turns = lambda timers, seconds, rounds: take_turns(timers, min(seconds, 0.01), rounds)
    for name in ("compress", "scan", "train", "distill"):
        import_module(f"shoal.cli.{name}")
    before, sys.argv = Path.cwd(), ["shoal", *_warm_up().words]
    os.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        shoal()
    os.chdir(before)


def _warm_up() -> Command:
    # One that computes no gradient: after a backward pass a process with several devices could not be forked.
    return next(command for command in COMMANDS if command.name == "compress --remove")


if __name__ == "__main__":
    main()
