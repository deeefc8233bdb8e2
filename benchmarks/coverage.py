"""The full way for many networks of others: one row a network, one column a step.

    python benchmarks/coverage.py [--only torchvision|timm|transformers|diffusers] [--names resnet18,bert]
        [--work FOLDER] [--limit 120] [--no-onnx] [--again failed|all] [--out NAME.json] [--docs docs/coverage.md]

- trace: the residual blocks found, and how many can be removed.
- task: what the network is for, where its class or labels tell. Of a detector Shoal compares the dense outputs.
- scan: what two of them are worth.
- remove: one block of the middle is taken out, and the network runs.
- replace: a span, across a change of stage where there is one, is fitted in closed form and replaced.
- save: with the span replaced and another block removed, weights and plan are written.
- unit: attention or MLP of a block alone is taken out; in blocks of one unit there is nothing to try.
- load: another process makes the network with other random weights, loads the folder, and gives the same bits.
- onnx: of the network without a block; counts only where the untouched original exports.

Every row runs in processes of its own with a time limit and a limit of memory, forked from one that has imported the
libraries and made no network. A network without any residual addition (paths joined by concatenation, plain chains)
has a list of its own: there the trace has to say what it saw, and `compress` to refuse with that.
Finished rows stand in --work, and the same command goes on from them; the JSON and the page always show all rows that
are finished.
"""

import argparse
import json
import multiprocessing
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm  # noqa: F401 - imported once, before the processes are forked
import torch
import torchvision  # noqa: F401
from covering import tiny_transformers
from covering.journey import STEPS, arrive, travel
from covering.made import Row
from covering.rows import rows_of
from covering.table import is_whole, page, summary

from shoal.measure import machine

_SOURCES = ("torchvision", "timm", "transformers", "diffusers")
_MEMORY = 12 * 2**30
_KEPT = "row.json"


def main() -> None:
    """Read the command line, run what is missing, keep the figures."""
    args = _arguments()
    torch.set_num_threads(1)  # a process forked from one with a pool of threads would wait for them
    args.work.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("fork")
    sources = [args.only] if args.only else _SOURCES
    rows = [row for source in sources for row in rows_of(source, args.work)]
    tiny_transformers.import_all()
    for row in rows:
        if not args.names or row.name in args.names.split(","):
            _run(row, args, context)
    finished = [one for row in rows if (one := _read(args.work / _file_name(row))) is not None]
    document = {"machine": machine("cpu").model_dump(), "planned": len(rows), "rows": finished}
    print(summary(finished), f"- {len(finished)} of {len(rows)} rows are finished")
    if args.out:
        args.out.write_text(json.dumps(document, indent=1) + "\n")
    if args.docs:
        args.docs.write_text(page(document, STEPS))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=_SOURCES)
    parser.add_argument("--names", help="only these, with commas")
    parser.add_argument("--work", type=Path, default=Path("coverage-work"))
    parser.add_argument("--limit", type=float, default=120, help="seconds for a row")
    parser.add_argument("--no-onnx", action="store_true")
    parser.add_argument("--again", choices=["failed", "all"], help="finished rows that are run once more")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--docs", type=Path)
    return parser.parse_args()


def _file_name(row: Row) -> str:
    return row.key.replace(":", "-").replace(" ", "-").replace("(", "").replace(")", "") + ".json"


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def _run(row: Row, args: argparse.Namespace, context: Any) -> None:
    file = args.work / _file_name(row)
    before = _read(file)
    if before is not None and not (args.again == "all" or (args.again == "failed" and not is_whole(before))):
        return
    folder, started = args.work / "now", time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    end = started + args.limit
    how = _within(context, end, travel, row, folder, not args.no_onnx)
    found = _read(folder / _KEPT) or {"key": row.key, "way": None, "cells": {}}
    if how is None and found["cells"].get("save", {}).get("ok"):
        how = _within(context, end, arrive, row, folder)
        found = _read(folder / _KEPT) or found
    if how is not None:
        step = next((name for name in STEPS if name not in found["cells"]), "load")
        found["cells"][step] = {"ok": False, "said": how}
    found["seconds"] = round(time.perf_counter() - started, 1)
    file.write_text(json.dumps(found, indent=1))
    shutil.rmtree(folder)
    failing = [f"{name}: {cell['said'][:160]}" for name, cell in found["cells"].items() if cell["ok"] is False]
    print(
        f"{'whole ' if is_whole(found) else 'BROKEN'} {row.key} {found['seconds']} s",
        *failing,
        sep="\n    ",
        flush=True,
    )


def _within(context: Any, end: float, do: Callable[..., None], *given: Any) -> str | None:
    """Do it in a process of its own; None, or how that process ended."""
    process = context.Process(target=_limited, args=(do, *given))
    process.start()
    process.join(max(1.0, end - time.perf_counter()))
    if process.is_alive():
        process.kill()
        process.join()
        return "it took longer than the limit"
    return None if process.exitcode == 0 else f"the process ended with {process.exitcode}"


def _limited(do: Callable[..., None], *given: Any) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    do(*given)


if __name__ == "__main__":
    main()
