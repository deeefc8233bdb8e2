"""What every command shares: where it prints, how it fails, how it shows that it is working."""

import ctypes
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shoal.errors import ShoalError, UsageError, check_memory

if TYPE_CHECKING:
    from shoal.sources.user_code import Consent

# As a shell reports them: 128 and the number of the signal.
INTERRUPTED, CLOSED_PIPE = 130, 141

# How torchrun and accelerate, Open MPI, MPICH and MVAPICH tell a process how many there are.
_WORLDS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


class Session:
    """One command. Prose goes to stdout, or to stderr where stdout is for JSON; progress and errors go to stderr.

    Where a launcher (`torchrun`, `accelerate launch`) started several processes, the first one speaks for all: the
    others say nothing but their errors, which nobody else might have seen.
    """

    def __init__(
        self, *, as_json: bool = False, debug: bool = False, trust_code: bool = False, config: Path | None = None
    ) -> None:
        self.as_json, self.debug, self.resume_hint = as_json, debug, "The same command begins anew."
        self.trust_code = trust_code
        self.config = config
        self.configuration = ""  # what a run writes as its own, see `configuration_text`
        self.explicit: frozenset[str] = frozenset()  # the options that are on the command line, or in `config`
        self.rank = rank()
        self.console = Console(stderr=as_json, highlight=False, quiet=self.rank > 0)
        self.errors = Console(stderr=True, highlight=False)
        self._document: TextIO | None = None

    @cached_property
    def consent(self) -> "Consent":
        """What may be run and fetched: what was typed."""
        from shoal.sources.user_code import Consent  # with torch behind it, which takes a while

        return Consent.of_specs(sys.argv[1:], trust_code=self.trust_code)

    def check_consent(self, spec: str) -> None:
        """Refuse to run a file that was not typed.

        Raises:
            ConsentError: a folder or the configuration names it.
        """
        self.consent.check(spec, f"'{self.config}'" if self.config is not None else "a folder")

    def check_alone(self, command: str) -> None:
        """Refuse several processes where each would do, and write, the same.

        Raises:
            UsageError: a launcher started several.
        """
        if processes() > 1:
            raise UsageError(
                f"`shoal {command}` runs in one process, a launcher started {processes()}",
                "Start it without a launcher; torchrun and accelerate may start what learns: `shoal train`, `shoal "
                "distill`, and `shoal compress` with --recover.",
            )

    def check_launcher(self, command: str) -> None:
        """Refuse several processes of a launcher that does not tell torch about them: each would work by itself.

        Raises:
            UsageError: mpirun and the like.
        """
        if _number("WORLD_SIZE", 1) != processes():
            self.check_alone(command)

    def print_json(self, document: Any) -> None:
        """The one JSON document of this command."""
        if self.rank == 0:
            stream = self._document or sys.stdout
            try:
                print(json.dumps(document, indent=2, allow_nan=False, default=str), file=stream, flush=True)
            except BrokenPipeError:
                leave_closed_pipe(stream)

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

    def _say_interrupted(self) -> None:
        if self.as_json:
            self.print_json({"error": {"kind": "interrupted", "message": "interrupted", "hint": self.resume_hint}})
        self.errors.print(f"interrupted. {self.resume_hint}", markup=False, soft_wrap=True)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn every error, and Ctrl-C, into one message and an exit code.

        With JSON, all that is printed meanwhile, by C libraries and the user's own code too, goes to stderr.
        """
        with self._stdout_for_one_document() if self.as_json else nullcontext():
            try:
                yield
            except ShoalError as error:
                self.fail(error)
            except KeyboardInterrupt as interrupt:
                self._say_interrupted()
                raise SystemExit(getattr(interrupt, "exit_code", INTERRUPTED)) from None
            except ClosedPipe:
                raise
            except (Exception, SystemExit) as error:  # noqa: BLE001 - Python's own exit code would be 1: goal not reached
                self.fail(_understood(error))

    @contextmanager
    def _stdout_for_one_document(self) -> Iterator[None]:
        stdout = sys.stdout
        with redirect_stdout(sys.stderr), _descriptor_for_one_document(stdout) as self._document:
            yield
        self._document = None

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
        self.console, self.stage, self.printed_at = console, "", 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self.printed_at = stage, now
            self.console.print(stage, markup=False, soft_wrap=True)
        elif now - self.printed_at > 10:
            self.printed_at = now
            self.console.print(f"{stage}: {done} of {total}", markup=False, soft_wrap=True)


def rank() -> int:
    """The number of this process among those a launcher started together; 0 is the first, or the only one."""
    return _number("RANK", 0) if processes() > 1 else 0


def processes() -> int:
    """How many processes a launcher started together; 1 without one."""
    return max(1, *(_number(name, 1) for name in _WORLDS))


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 10 else default


class ClosedPipe(SystemExit):
    """Nobody reads any more what the command prints."""


def leave_closed_pipe(stream: TextIO | None) -> NoReturn:
    """End the command quietly: what is still in the stream's buffer goes nowhere."""
    descriptor = _descriptor_of(stream)
    if descriptor is not None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
    raise ClosedPipe(CLOSED_PIPE)


def _descriptor_of(stream: TextIO | None) -> int | None:
    """The file descriptor behind a stream; None where there is none."""
    try:
        return stream.fileno() if stream is not None else None
    except (OSError, ValueError):
        return None


@contextmanager
def _descriptor_for_one_document(stdout: TextIO | None) -> Iterator[TextIO | None]:
    """A stream to what standard output is, while everybody else's standard output is stderr, in C too."""
    if _descriptor_of(stdout) != 1 or stdout is None:
        yield stdout
        return
    stdout.flush()
    saved = os.dup(1)
    os.dup2(2 if _descriptor_of(sys.stderr) == 2 else os.open(os.devnull, os.O_WRONLY), 1)
    try:
        with os.fdopen(saved, "w", encoding="utf-8", closefd=False) as document:
            yield document
    finally:
        with suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).fflush(None)  # C keeps a buffer of its own, which would otherwise come out later
        os.dup2(saved, 1)
        os.close(saved)


def _understood(error: BaseException) -> ShoalError:
    try:
        check_memory(error)
    except ShoalError as shortage:
        return shortage
    return ShoalError(
        f"{type(error).__name__}: {error}",
        "This was not foreseen; repeat with --debug for the traceback and report it.",
    )
