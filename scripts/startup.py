"""How long `import shoal` and `shoal --help` take: the best of several starts.

    python scripts/startup.py

A start is judged by its processor time: on a quiet machine it is that of the clock, and other programs add nothing.
"""

import os
import subprocess
import sys
import time

LIMITS = {("-c", "import shoal"): 0.3, ("-m", "shoal", "--help"): 0.5, ("-m", "shoal", "compress", "--help"): 0.5}
STARTS = 7


def main() -> None:
    """Measure; the exit code says whether all are within their limits."""
    slow = False
    for words, limit in LIMITS.items():
        processor, clock = (min(times) for times in zip(*(timed(words) for _ in range(STARTS)), strict=True))
        slow |= processor > limit
        print(f"python {' '.join(words)}: {processor:.3f} s (at most {limit} s); {clock:.3f} s by the clock")
    raise SystemExit(slow)


def timed(words: tuple[str, ...]) -> tuple[float, float]:
    """The seconds of one start: of the processor, by the clock."""
    # The first start may write bytecode, as installers do.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL, env=environment)
    after, clock = os.times(), time.perf_counter() - began
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return spent or clock, clock  # Windows does not count the time of children


if __name__ == "__main__":
    main()
