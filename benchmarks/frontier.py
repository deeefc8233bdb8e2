"""Shoal's plan against rivals at the same measured latency, without training: one run, one cell per method and point.

    python benchmarks/frontier.py MODEL DATA [--weights F] [--mean ..] [--std ..] [--also DATA2]
        [--points 0.8,0.7,0.6,0.5,0.4,0.3] [--methods shoal,greedy,influence,width] [--images 4660] [--batch-size 128]
        [--channels-last] [--work FOLDER] --out NAME.json

Points are shares of the original's latency. Every method gets the same unlabelled calibration images (the train part
of DATA, its validation fifth included: nothing is judged on it) and has its batch norms recalibrated where that lowers
KL on the images held back. A network counts at a point if it takes at most 1.01 times that share, timed in turns with
the original; at the end of a point all its networks are timed in turns in one run. Test images are only measured on.

Finished cells are kept in --work, and the same command goes on from them; delete the folder of a cell to have it again.
"""

import argparse
from typing import Any

import torch
from rivals import METHODS, UNTRAINED, Ground
from rivals.cell import Place, Sets, run_cell, versus
from rivals.command_line import (
    Stages,
    carry_out,
    common_arguments,
    comparison_parser,
    data_of,
    parse,
    public_spec,
    versions,
)
from rivals.ground import SLACK, unlabelled
from rivals.table import lines
from rivals.together import side_by_side

from shoal.measure import machine
from shoal.sources import load_model
from shoal.store import RunFolder
from shoal.surgery import model_digest


def main() -> None:
    """Read the command line, run what is missing, print a table, keep the figures."""
    carry_out(_arguments(), _run, lines)


def _run(args: argparse.Namespace) -> dict[str, Any]:
    sets = {name: data_of(args, spec) for name, spec in (("data", args.data), ("also", args.also)) if spec}
    model = load_model(args.model, args.weights).model.eval()
    RunFolder(args.work, "frontier", _claim(args, model))
    source = sets["data"]
    calibration = unlabelled([source.calibration(), source.validation(augment=True)], args.images)
    ground = Ground(model, calibration, args.work, args.channels_last, Stages())
    tests = Sets(ground, sets)
    points = [_point(ground, tests, args, point) for point in args.points]
    return {
        "command": _command(args),
        "network": model_digest(model),
        "data": {name: one.describe() | {"spec": public_spec(one.spec)} for name, one in sets.items()},
        "calibration": {
            "images": sum(batch.size for batch in calibration),
            "fitted_on": sum(batch.size for batch in ground.fit_on),
            "judged_on_with_blends": sum(batch.size for batch in ground.judge_on),
            "labels": "not used",
        },
        "counts_up_to": f"{SLACK} times the point, in turns with the original",
        "points": points,
        "versions": versions(),
        "machine": machine("cpu").model_dump(mode="json"),
    }


def _point(ground: Ground, tests: Sets, args: argparse.Namespace, point: float) -> dict[str, Any]:
    """The cells of a point, those that are missing made now, and all its networks side by side."""
    cells = {}
    for method in args.methods:
        place = Place(args.work, point, method)
        kept = place.finished()
        print(f"{point:g} {method}: {'kept' if kept else 'running'}", flush=True)
        cells[method] = kept or run_cell(ground, tests, place)
    together = side_by_side(ground, args.work, point)
    for method, cell in cells.items():
        if cell["reached"]:
            cell["meets_point_together"] = together["shares"][method] <= point * SLACK
            cell["versus_shoal"] = versus(
                Place(args.work, point, "shoal"), Place(args.work, point, method), list(tests.data)
            )
    return {"point": point, "together": together, "cells": cells}


def _claim(args: argparse.Namespace, model: torch.nn.Module) -> dict[str, Any]:
    """All that decides a cell but its method and point: kept cells of another run must not be mixed in."""
    names = ("mean", "std", "images", "batch_size", "channels_last")
    specs = {"data": public_spec(args.data), "also": public_spec(args.also)}
    return (
        {name: getattr(args, name) for name in names}
        | specs
        | {
            "network": model_digest(model),
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
        }
    )


def _command(args: argparse.Namespace) -> str:
    """What was run, without the folders of this machine."""
    return f"python benchmarks/frontier.py {' '.join(common_arguments(args))} --out {args.out.name}"


def _arguments() -> argparse.Namespace:
    parser = comparison_parser(__doc__, "frontier", [0.8, 0.7, 0.6, 0.5, 0.4, 0.3], list(METHODS), list(UNTRAINED))
    return parse(parser, "frontier")


if __name__ == "__main__":
    main()
