"""What the benchmarks against rivals read from the command line, and write down of it, in the same way."""

import argparse
from importlib import metadata
from pathlib import Path

from shoal.sources import Data, load_data


class Stages:
    """Prints each stage once."""

    def __init__(self) -> None:
        self.stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Progress, as everybody tells it."""
        if stage != self.stage:
            self.stage = stage
            print(f"  {stage}", flush=True)


def data_of(args: argparse.Namespace, spec: str) -> Data:
    """The data of a specification, as --mean, --std and --batch-size say."""
    return load_data(spec, mean=_numbers(args.mean), std=_numbers(args.std), batch_size=args.batch_size)


def spoken(spec: str | None) -> str | None:
    """A specification without the folder it lies in."""
    if spec is None:
        return None
    return ":".join(Path(part).name if Path(part).is_absolute() else part for part in spec.split(":"))


def versions() -> dict[str, str]:
    """Of what the figures hang on."""
    found = {}
    for name in ("torch", "torch-pruning", "numpy", "scipy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def points(text: str) -> list[float]:
    """Shares of the original's latency, for argparse."""
    found = [float(part) for part in text.split(",")]
    if not all(0 < point < 1 for point in found):
        raise argparse.ArgumentTypeError(f"'{text}' are not shares of the original's latency, like 0.8,0.5")
    return found


def names_of(known: list[str], text: str) -> list[str]:
    """Names of a list, for argparse."""
    names = text.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown method '{unknown[0]}', known: {', '.join(known)}")
    return names


def given(args: argparse.Namespace) -> list[str]:
    """The common part of the command, without the folders of this machine."""
    said = [spoken(args.model) or "", spoken(args.data) or ""]
    said += [f"--weights {args.weights.name}"] if args.weights else []
    said += [f"--{name} {value}" for name in ("mean", "std") if (value := getattr(args, name))]
    said += [f"--also {spoken(args.also)}"] if args.also else []
    said.append("--points " + ",".join(f"{point:g}" for point in args.points))
    said.append("--methods " + ",".join(args.methods))
    said.append(f"--images {args.images} --batch-size {args.batch_size}")
    return said + (["--channels-last"] if args.channels_last else [])


def _numbers(text: str | None) -> list[float] | None:
    return [float(part) for part in text.split(",")] if text else None
