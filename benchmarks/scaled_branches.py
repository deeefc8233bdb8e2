"""A network whose branches are scaled before they are added (RRDB): blocks removed, scaled stand-ins, both refitted.

    python benchmarks/scaled_branches.py FILE.py:network FILE.py:data --count 8 --out FILE.json

The blocks are those of the least damage in a scan, and for the rival those of the least block influence. Each way is
timed beside the original. PSNR is the mean over test images, by a few lines that share nothing with Shoal's; intervals
are 95 % percentiles of 2,000 bootstraps by image, of drops in pairs. Each way is kept in --out as soon as it is done.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from shoal.batches import Batch, batches
from shoal.blocks import BlockGraph, analyze
from shoal.measure import latency_ratios, machine
from shoal.plan import Replace
from shoal.preserve import copied
from shoal.replace import ReplacementSpec, build_segments, find_spans, fit_all, refit_
from shoal.scanning import removal_sweep
from shoal.scanning.scores.collect import block_scores
from shoal.sources import load_data, load_model
from shoal.surgery import remove_blocks
from shoal.surgery.replace import replace_spans_


def main() -> None:
    """Measure the ways that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--count", type=int, required=True, help="blocks that go")
    parser.add_argument("--fit", type=int, default=12, help="samples to fit on")
    parser.add_argument("--ways", default=",".join(WAYS), help="which of them")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, data = load_model(args.model).model, load_data(args.data, batch_size=4)
    fit = [batch for _, batch in zip(range(args.fit // 4), batches(data.calibration(augment=False)), strict=False)]
    graph = analyze(copied(model), fit[0].take(2))
    document: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"ways": {}}
    test = list(batches(data.test()))
    base = decibels(model, test)
    document |= {"machine": machine("cpu").model_dump(mode="json"), "count": args.count, "fit": args.fit}
    document |= {"n": len(base), "original": with_interval(base)}
    for way in args.ways.split(","):
        if way not in document["ways"]:
            cut = WAYS[way](graph, fit, args.count)
            ratio = latency_ratios(
                {"original": model, "cut": cut}, test[0].take(1), reference="original", max_seconds=6.0
            )["cut"]
            values = decibels(cut, test)
            document["ways"][way] = {
                "share": [ratio.ratio, ratio.low, ratio.high],
                "psnr": with_interval(values),
                "drop": with_interval(base - values),
            }
            args.out.write_text(json.dumps(document, indent=1) + "\n")
        print(way, document["ways"][way], flush=True)


def least(graph: BlockGraph, fit: list[Batch], count: int) -> list[str]:
    """The blocks of the least damage, on four samples."""
    paths = [block.path for block in graph.chain.removable]
    damage = {removal.path: removal.damage for removal in removal_sweep(graph, [fit[0].take(4)], paths)}
    return in_order(paths, sorted(paths, key=damage.__getitem__)[:count])


def of_influence(graph: BlockGraph, fit: list[Batch], count: int) -> list[str]:
    """The blocks of the least block influence (arXiv:2403.03853)."""
    paths = [block.path for block in graph.chain.removable]
    scores = block_scores(graph, fit)
    return in_order(paths, sorted(paths, key=lambda path: scores[path]["block_influence"])[:count])


def in_order(paths: list[str], chosen: list[str]) -> list[str]:
    """As they stand in the network."""
    return [path for path in paths if path in chosen]


def removed(
    graph: BlockGraph,
    fit: list[Batch],
    count: int,
    choose: Callable[[BlockGraph, list[Batch], int], list[str]] = least,
    *,
    refit: bool = False,
) -> nn.Module:
    """Without the blocks; and with the maps that are left fitted to what is missing."""
    paths = choose(graph, fit, count)
    cut = remove_blocks(graph.model, fit[0].take(2), paths).eval()
    return refit_(graph, cut, [], fit, removed=paths) if refit else cut


def scaled(graph: BlockGraph, fit: list[Batch], count: int, *, refit: bool = False) -> nn.Module:
    """A scale and an offset for each channel in place of each of the blocks."""
    paths = least(graph, fit, count)
    spans = {span.paths: span for span in find_spans(graph, build_segments(graph), 1)}
    fitted = fit_all(graph, fit, [ReplacementSpec(spans[path,], "scale") for path in paths])
    actions = [Replace(paths=list(each.span.paths), stand_in=each.stand_in) for each in fitted]
    modules = {each.span.paths[0]: copied(each.module) for each in fitted}
    cut = replace_spans_(analyze(copied(graph.model), fit[0].take(2)), actions, modules)
    return refit_(graph, cut, fitted, fit) if refit else cut


WAYS: dict[str, Callable[[BlockGraph, list[Batch], int], nn.Module]] = {
    "scaled + refitted": lambda graph, fit, count: scaled(graph, fit, count, refit=True),
    "removed by influence": lambda graph, fit, count: removed(graph, fit, count, of_influence),
    "removed": removed,
    "removed + refitted": lambda graph, fit, count: removed(graph, fit, count, refit=True),
    "scaled": scaled,
    "removed by influence + refitted": lambda graph, fit, count: removed(graph, fit, count, of_influence, refit=True),
}


def decibels(model: nn.Module, test: list[Batch]) -> np.ndarray:
    """PSNR of each image against its target."""
    with torch.inference_mode():
        errors = [(model(*batch.args).double() - batch.target).square().mean((1, 2, 3)) for batch in test]
    return (-10 * torch.cat(errors).log10()).numpy()


def with_interval(values: np.ndarray) -> list[float]:
    """The mean, and a 95 % interval."""
    picks = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
    return [float(values.mean()), *np.percentile(values[picks].mean(1), [2.5, 97.5]).tolist()]


if __name__ == "__main__":
    main()
