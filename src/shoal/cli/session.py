"""What every command shares: where it prints, how it fails, how it shows that it is working."""

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shoal.errors import ShoalError


class Session:
    """One command. Prose goes to stdout, or to stderr where stdout is for JSON; progress and errors go to stderr.

    Where a launcher (`torchrun`, `accelerate launch`) started several processes, the first one speaks for all: the
    others say nothing but their errors, which nobody else might have seen.
    """

    def __init__(self, *, as_json: bool = False, debug: bool = False) -> None:
        self.as_json, self.debug, self.resume_hint = as_json, debug, ""
        self.rank = rank()
        self.console = Console(stderr=as_json, highlight=False, quiet=self.rank > 0)
        self.errors = Console(stderr=True, highlight=False)

    def print_json(self, document: Any) -> None:
        """The one JSON document of this command."""
        if self.rank == 0:
            sys.stdout.write(json.dumps(document, indent=2, allow_nan=False, default=str) + "\n")

    def say(self, text: str) -> None:
        """A line of prose, whole however narrow the terminal is."""
        self.console.print(text, markup=False, soft_wrap=True)

    def fail(self, error: ShoalError) -> NoReturn:
        """Report an error and leave with its exit code."""
        if self.debug:
            traceback.print_exception(error)
        if self.as_json:
            self.print_json({"error": {"kind": error.kind, "message": error.message, "hint": error.hint}})
        if self.rank > 0 or not self.as_json:
            who = f"process {self.rank}: " if self.rank else ""
            self.errors.print(f"{who}error: {error.message}", markup=False, soft_wrap=True, style="bold red")
            if error.hint:
                self.errors.print(f"  {error.hint}", markup=False, soft_wrap=True)
        raise SystemExit(error.exit_code)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn Shoal's errors, and Ctrl-C, into one message and an exit code; others only without `--debug`."""
        try:
            yield
        except ShoalError as error:
            self.fail(error)
        except KeyboardInterrupt:
            self.errors.print(f"interrupted. {self.resume_hint}".strip(), markup=False, soft_wrap=True)
            raise SystemExit(130) from None
        except MemoryError as error:
            self.fail(ShoalError("out of memory", f"Try a smaller --batch-size. {error}"))
        except Exception as error:
            if self.debug:
                raise
            self.fail(_unexpected(error))

    @contextmanager
    def progress(self) -> Iterator[Any]:
        """A callback `(stage, done, total)` that draws a bar with the time left; one line a stage when piped."""
        if self.rank > 0:
            yield lambda stage, done, total: None
            return
        if not self.errors.is_terminal:
            yield _Lines(self.errors)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.errors, transient=True) as bar:
            yield _Bar(bar)


class _Bar:
    """One bar that is renamed and restarted with every stage."""

    def __init__(self, bar: Progress) -> None:
        self.bar, self.stage, self.task = bar, "", bar.add_task("", total=None)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self.stage:
            self.stage = stage
            self.bar.reset(self.task, description=stage, total=total or None)
        self.bar.update(self.task, completed=done, total=total or None)


class _Lines:
    """Plain lines for a pipe or a log: the name of a stage when it begins, then at most one line in ten seconds."""

    def __init__(self, console: Console) -> None:
        self.console, self.stage, self.said = console, "", 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self.said = stage, now
            self.console.print(stage, markup=False, soft_wrap=True)
        elif now - self.said > 10:
            self.said = now
            self.console.print(f"{stage}: {done} of {total}", markup=False, soft_wrap=True)


def rank() -> int:
    """The number of this process among those a launcher started together; 0 is the first, or the only one."""
    several = os.environ.get("WORLD_SIZE", "1") not in ("", "1")
    return int(os.environ.get("RANK", "0") or 0) if several else 0


def _unexpected(error: Exception) -> ShoalError:
    return ShoalError(
        f"{type(error).__name__}: {error}",
        "This was not foreseen; repeat with --debug for the traceback and report it.",
    )
