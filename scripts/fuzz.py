"""Alter sound files at random and feed them to every reader, for FUZZ_SECONDS (an hour by default): `make fuzz`.

With atheris installed inputs that reach new lines of the readers are altered further; without it only sound files are.
An input after which anything leaves
a reader but a `ShoalError`, that takes longer than ten seconds, or that makes the process larger than 4 GiB, is *lost*:
it is kept in FUZZ_INPUTS (`fuzz-inputs`), and the run ends with exit code 1. Counts go to FUZZ_RESULTS
(`benchmarks/results/fuzz.json`), from where `make faults` takes them into `docs/reliability.md`.
"""

import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

try:
    import atheris
except ImportError:
    atheris = None

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "fuzz"))
with atheris.instrument_imports(include=["shoal"]) if atheris else nullcontext():
    import readers

LONGEST, LARGEST = 10.0, 4 * 2**20  # seconds for one input, KiB of the process
LONGEST_INPUT = 2**16  # bytes


class TooLongError(BaseException):
    """No Exception: a reader must not take it for a fault of its file."""


@dataclass
class Count:
    """What became of the inputs of one reader."""

    reader: str
    inputs: int = 0
    refused: int = 0
    accepted: int = 0
    lost: int = 0


def altered(content: bytes, source: random.Random) -> bytes:
    """A few bytes flipped, left out, repeated, or cut off."""
    mutant = bytearray(content)
    for _ in range(source.randint(1, 6)):
        place, length = source.randrange(len(mutant) + 1), source.randint(1, 32)
        how = source.randrange(4)
        if how == 0 and place < len(mutant):
            mutant[place] ^= 1 << source.randrange(8)
        elif how == 1:
            mutant[place:place] = mutant[max(0, place - length) : place]
        elif how == 2:
            del mutant[place : place + length]
        else:
            text = bytes(source.choices(range(32, 127), k=source.randint(1, 8)))
            mutant[place:place] = source.choice((text, source.randbytes(len(text))))
    return bytes(mutant)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TooLongError` in the block once it has taken so long."""

    def stop(*_: object) -> None:
        raise TooLongError(f"it took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again each second: a finaliser may swallow the first
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def feed(count: Count, content: bytes, keep: Path) -> None:
    """Give one input to a reader and count what became of it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count.inputs += 1
    try:
        with time_limit(LONGEST):
            error = readers.feed(count.reader, content)
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if largest > max(LARGEST, before):
            raise MemoryError(f"the process takes {largest} KiB")
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - whatever it is, it is what is looked for
        count.lost += 1
        keep.mkdir(exist_ok=True)
        path = keep / f"{count.reader}-{count.lost}.bin"
        path.write_bytes(content)
        print(f"{count.reader}: lost, the input is in {path}", traceback.format_exc(limit=-4), sep="\n", flush=True)
    else:
        count.refused += error is not None
        count.accepted += error is None


def feed_altered(counts: list[Count], seed: int, keep: Path, go_on: Callable[[], bool]) -> None:
    """Feed sound files, altered at random."""
    source = random.Random(seed)
    while go_on():
        count = source.choice(counts)
        feed(count, altered(readers.SOUND[count.reader], source), keep)


def feed_explored(
    counts: list[Count], seed: int, keep: Path, go_on: Callable[[], bool], end: Callable[[], Any]
) -> None:
    """Feed what atheris finds; the first byte of an input is the number of its reader. `end` has to end the process."""

    def one_input(data: bytes) -> None:
        if not go_on():
            end()
        if data:
            feed(counts[data[0] % len(counts)], data[1:], keep)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        source = random.Random(seed)  # half by each: theirs changes single numbers and words, ours longer pieces
        body = data[1:]
        body = altered(body, source) if source.random() < 0.5 else atheris.Mutate(body, max_size - 1)
        return data[:1] + body[: max_size - 1]

    with tempfile.TemporaryDirectory() as corpus:
        for number, count in enumerate(counts):
            (Path(corpus) / count.reader).write_bytes(bytes([number]) + readers.SOUND[count.reader])
        options = [
            f"-max_len={LONGEST_INPUT}",
            f"-seed={seed + 1}",
            "-handle_alrm=0",
            "-rss_limit_mb=0",
            "-verbosity=0",
        ]
        atheris.Setup([sys.argv[0], *options, corpus], one_input, custom_mutator=mutate)
        atheris.Fuzz()


def main() -> int:
    """Feed until the time is up; write and print what became of all inputs."""
    seconds, seed = float(os.environ.get("FUZZ_SECONDS", "3600")), int(os.environ.get("FUZZ_SEED", "0"))
    results = Path(os.environ.get("FUZZ_RESULTS", "benchmarks/results/fuzz.json"))
    keep = Path(os.environ.get("FUZZ_INPUTS", "fuzz-inputs"))
    stop = time.monotonic() + seconds
    counts = [Count(kind) for kind in readers.SOUND]
    run = {"seconds": seconds, "seed": seed, "with": "atheris" if atheris else "bytes altered at random"}

    def report() -> int:
        for count in counts:
            print(
                f"{count.reader:12} {count.inputs:7} inputs {count.refused:7} refused {count.lost:4} lost", flush=True
            )
        document = {"run": run, "readers": [asdict(count) for count in counts]}
        results.write_text(json.dumps(document, indent=2) + "\n")
        return int(any(count.lost for count in counts))

    def go_on() -> bool:
        return time.monotonic() < stop

    if atheris:
        feed_explored(counts, seed, keep, go_on, lambda: os._exit(report()))
    feed_altered(counts, seed, keep, go_on)
    return report()


if __name__ == "__main__":
    sys.exit(main())
