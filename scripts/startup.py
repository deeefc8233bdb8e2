"""How long `import shoal` and `shoal --help` take: the best of several starts, and what they must not import.

python scripts/startup.py
"""

import subprocess
import sys
import time

LIMITS = {("-c", "import shoal"): 0.3, ("-m", "shoal", "--help"): 0.5, ("-m", "shoal", "compress", "--help"): 0.5}
STARTS = 7


def main() -> None:
    """Measure; the exit code says whether all are within their limits."""
    slow = False
    for words, limit in LIMITS.items():
        seconds = min(timed(words) for _ in range(STARTS))
        slow |= seconds > limit
        print(f"python {' '.join(words)}: {seconds:.3f} s (at most {limit} s)")
    raise SystemExit(slow)


def timed(words: tuple[str, ...]) -> float:
    """The seconds of one start."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
