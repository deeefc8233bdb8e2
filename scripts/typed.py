"""How much of Shoal has types for those who use it from typed code: `make verify-types`.

Every module counts, public or not. What is missing is listed by `basedpyright --ignoreexternal --verifytypes shoal`.
"""

import json
import subprocess

FLOOR = 0.9  # raise it with what is reached


def main() -> None:
    """Measure; the exit code says whether the share is at least the floor."""
    command = ["basedpyright", "--ignoreexternal", "--outputjson", "--verifytypes", "shoal"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)["typeCompleteness"]
    counts = found["exportedSymbolCounts"]
    score = found["completenessScore"]
    print(
        f"{score:.1%} of {sum(counts.values())} symbols have a type that every checker sees (at least {FLOOR:.0%});"
        f" {counts['withAmbiguousType']} are inferred, {counts['withUnknownType']} unknown"
    )
    raise SystemExit(score < FLOOR)


if __name__ == "__main__":
    main()
