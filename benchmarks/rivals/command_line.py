"""What the benchmarks against rivals read from the command line, and record of it, in the same way."""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from shoal.errors import ShoalError
from shoal.files.writing import write_text
from shoal.sources import Data, load_data


class Stages:
    """Prints each stage once."""

    def __init__(self) -> None:
        self.stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """A progress callback."""
        if stage != self.stage:
            self.stage = stage
            print(f"  {stage}", flush=True)


def network_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with what every script on a network and its data is told: MODEL DATA, their options, where to write."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--mean")
    parser.add_argument("--std")
    parser.add_argument("--out", type=Path, required=True)
    return parser


def comparison_parser(
    doc: str | None, name: str, shares: Sequence[float], methods: Sequence[str], default: Sequence[str]
) -> argparse.ArgumentParser:
    """A parser with the options of every comparison.

    Args:
        doc: of the script.
        name: of the comparison, for its folder.
        shares: the points by default.
        methods: all of them.
        default: those that run where none is named.
    """
    parser = network_parser(doc)
    parser.add_argument("--also", help="a second data set, of which only the test part is measured on")
    parser.add_argument("--points", type=points, default=list(shares))
    parser.add_argument("--methods", type=partial(names_of, list(methods)), default=list(default))
    parser.add_argument("--images", type=int, default=4660)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--work", type=Path, help=f"where finished cells are kept; by default build/{name}/NAME")
    return parser


def parse(parser: argparse.ArgumentParser, name: str) -> argparse.Namespace:
    """The command line, with the folder of the comparison where none was named."""
    args = parser.parse_args()
    args.work = args.work or Path("build") / name / args.out.stem
    return args


def carry_out(
    args: argparse.Namespace,
    run: Callable[[argparse.Namespace], dict[str, Any]],
    lines: Callable[[dict[str, Any]], Iterable[str]],
) -> None:
    """Run what is missing, keep the figures, print a table."""
    try:
        document = run(args)
    except ShoalError as error:
        raise SystemExit(f"error: {error.message}. {error.hint}") from error
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on from {args.work}")
        raise SystemExit(130) from None
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, json.dumps(document, indent=1) + "\n")
    print("\n".join(lines(document)))


def data_of(args: argparse.Namespace, spec: str) -> Data:
    """The data of a specification, as --mean, --std and --batch-size say."""
    return load_data(spec, mean=_numbers(args.mean), std=_numbers(args.std), batch_size=args.batch_size)


def public_spec(spec: str | None) -> str | None:
    """A specification without the folder it lies in."""
    if spec is None:
        return None
    return ":".join(Path(part).name if Path(part).is_absolute() else part for part in spec.split(":"))


def versions() -> dict[str, str]:
    """Of the packages that figures depend on."""
    installed = {}
    for name in ("torch", "torch-pruning", "numpy", "scipy"):
        with suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def points(text: str) -> list[float]:
    """Shares of the original's latency, for argparse."""
    shares = [float(part) for part in text.split(",")]
    if not all(0 < point < 1 for point in shares):
        raise argparse.ArgumentTypeError(f"'{text}' are not shares of the original's latency, like 0.8,0.5")
    return shares


def names_of(methods: list[str], text: str) -> list[str]:
    """Names of a list, for argparse."""
    names = text.split(",")
    unknown = [name for name in names if name not in methods]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown method '{unknown[0]}', expected some of {', '.join(methods)}")
    return names


def common_arguments(args: argparse.Namespace) -> list[str]:
    """The common part of the command, without the folders of this machine."""
    words = [public_spec(args.model) or "", public_spec(args.data) or ""]
    words += [f"--weights {args.weights.name}"] if args.weights else []
    words += [f"--{name} {value}" for name in ("mean", "std") if (value := getattr(args, name))]
    words += [f"--also {public_spec(args.also)}"] if args.also else []
    words.append("--points " + ",".join(f"{point:g}" for point in args.points))
    words.append("--methods " + ",".join(args.methods))
    words.append(f"--images {args.images} --batch-size {args.batch_size}")
    return words + (["--channels-last"] if args.channels_last else [])


def _numbers(text: str | None) -> list[float] | None:
    return [float(part) for part in text.split(",")] if text else None
