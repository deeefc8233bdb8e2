"""Alter sound files at random and feed them to every reader, for FUZZ_SECONDS (an hour by default): `make fuzz`.

With atheris installed its mutator is used, which learns from what the code covers in between; without it bytes are
altered at random. Whatever leaves a reader but a `ShoalError`, takes longer than ten seconds, or makes the process
larger than 4 GiB ends the run with the input on the disk.
"""

import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "fuzz"))
import readers

LONGEST, LARGEST = 10, 4 * 2**20  # seconds for one input, KiB of the process


def altered(content: bytes, source: random.Random) -> bytes:
    """A few bytes flipped, left out, repeated, or cut off."""
    made = bytearray(content)
    for _ in range(source.randint(1, 6)):
        place, many = source.randrange(len(made) + 1), source.randint(1, 32)
        how = source.randrange(4)
        if how == 0 and place < len(made):
            made[place] ^= 1 << source.randrange(8)
        elif how == 1:
            made[place:place] = made[max(0, place - many) : place]
        elif how == 2:
            del made[place : place + many]
        else:
            made[place:place] = source.randbytes(source.randint(1, 8))
    return bytes(made)


def main() -> None:
    """Feed until the time is up; print how many inputs each reader saw, and how many it refused."""
    mutate = altered
    try:
        import atheris

        mutate = lambda content, source: atheris.Mutate(altered(content, source), 2 * len(content) + 64)  # noqa: E731
        mutate(b"abc", random.Random(0))
    except (ImportError, RuntimeError, AttributeError):
        mutate = altered
    source, end = random.Random(int(os.environ.get("FUZZ_SEED", "0"))), time.monotonic()
    end += float(os.environ.get("FUZZ_SECONDS", "3600"))
    fed, refused = Counter[str](), Counter[str]()
    while time.monotonic() < end:
        kind = source.choice(list(readers.SOUND))
        content = mutate(readers.SOUND[kind], source)
        signal.alarm(LONGEST)
        try:
            error = readers.feed(kind, content)
        except BaseException:
            Path(f"fuzz-{kind}.bin").write_bytes(content)
            print(f"{kind}: the input is in fuzz-{kind}.bin")
            raise
        finally:
            signal.alarm(0)
        fed[kind] += 1
        refused[kind] += error is not None
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > LARGEST:
            Path(f"fuzz-{kind}.bin").write_bytes(content)
            sys.exit(f"{kind}: the process takes more than {LARGEST} KiB, the input is in fuzz-{kind}.bin")
    for kind in readers.SOUND:
        print(f"{kind:12} {fed[kind]:7} inputs, {refused[kind]:7} refused")
    print(f"{sum(fed.values())} inputs in all; nothing but ShoalError left a reader")


class TooLongError(BaseException):
    """No Exception: a reader must not take it for a fault of its file."""


def _too_long(*_: object) -> None:
    raise TooLongError("a reader takes too long")


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, _too_long)
    main()
