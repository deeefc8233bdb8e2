"""A network whose branches are scaled before they are added (RRDB): blocks removed or replaced, refitted or not.

    python benchmarks/scaled_branches.py FILE.py:network FILE.py:data --counts 8 --out FILE.json

The blocks that go are those whose change by itself does the least damage: their removal, or their replacement by
--kind. For the rival they are those of the least block influence. A replacement is fitted to what the block of the
original is given and returns; set in turn, it is fitted once more, in the order of the network, to what it is really
given and what the original returns there. Refitted, the maps of the blocks that are left are, too.

Each way is timed beside the original. PSNR is the mean over test images, by a few lines that share nothing with
Shoal's; intervals are 95 % percentiles of 2,000 bootstraps by image, of drops in pairs. Each way is kept in --out as
soon as it is done.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from shoal.batches import Batch, batches
from shoal.blocks import BlockGraph, analyze
from shoal.files.writing import write_text
from shoal.measure import latency_ratios, machine
from shoal.plan import Replace
from shoal.preserve import copied
from shoal.replace import (
    FittedReplacement,
    RefitConfig,
    ReplacementSpec,
    build_segments,
    find_spans,
    fit_all,
    refit_,
)
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
    parser.add_argument("--counts", type=numbers, required=True, help="how many blocks go, with commas")
    parser.add_argument("--fit", type=int, default=12, help="samples to fit on")
    parser.add_argument("--kind", default="scale", help="of replacement: scale, linear, conv3")
    parser.add_argument("--ways", default=",".join(WAYS), help="which of them")
    parser.add_argument("--latency-only", action="store_true", help="time the networks of --out anew")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, data = load_model(args.model).model, load_data(args.data, batch_size=4)
    fit = [batch for _, batch in zip(range(args.fit // 4), batches(data.calibration(augment=False)), strict=False)]
    cuts = Cuts(analyze(copied(model), fit[0].take(2)), fit, args.kind)
    document: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"ways": {}}
    test = list(batches(data.test()))
    if args.latency_only:
        retime(cuts, model, test[0].take(1), document, args.out)
        return
    base = decibels(model, test)
    document |= {"machine": machine("cpu").model_dump(mode="json"), "fit": args.fit, "kind": args.kind}
    document |= {"n": len(base), "original": with_interval(base)}
    for count, way in product(args.counts, args.ways.split(",")):
        figures = document["ways"].setdefault(way, {})
        if str(count) not in figures:
            cut = WAYS[way](cuts, count)
            values = decibels(cut, test)
            figures[str(count)] = {
                "share": share(model, cut, test[0].take(1)),
                "psnr": with_interval(values),
                "drop": with_interval(base - values),
            }
            write_text(args.out, json.dumps(document, indent=1) + "\n")
        print(count, way, figures[str(count)], flush=True)


def share(model: nn.Module, cut: nn.Module, batch: Batch) -> list[float]:
    """The latency as a share of the original's, with its interval."""
    networks = {"original": model, "cut": cut}
    ratio = latency_ratios(networks, batch, reference="original", max_seconds=8.0)["cut"]
    return [ratio.ratio, ratio.low, ratio.high]


def retime(cuts: "Cuts", model: nn.Module, batch: Batch, document: dict[str, Any], out: Path) -> None:
    """Time every structure again; which blocks go and which weights are left makes no difference to it."""
    for way, figures in document["ways"].items():
        for count in figures:
            paths = cuts.paths[: int(count)]
            if way.startswith("replaced"):
                cut = cuts.with_replacements(paths)[0]
            else:
                cut = remove_blocks(cuts.graph.model, cuts.fit[0].take(2), paths).eval()
            figures[count]["share"] = share(model, cut, batch)
            print(way, count, figures[count]["share"], flush=True)
            write_text(out, json.dumps(document, indent=1) + "\n")


def numbers(text: str) -> list[int]:
    """Whole numbers with commas."""
    return [int(part) for part in text.split(",")]


@dataclass(frozen=True, eq=False)
class Cuts:
    """Networks with some blocks fewer."""

    graph: BlockGraph
    fit: list[Batch]
    kind: str

    @cached_property
    def paths(self) -> list[str]:
        """Of all blocks, as they stand in the network."""
        return [block.path for block in self.graph.chain.removable]

    @cached_property
    def by_removal(self) -> list[str]:
        """The blocks by the damage of their removal, on four samples."""
        removals = removal_sweep(self.graph, [self.fit[0].take(4)], self.paths)
        damage = {removal.path: removal.damage for removal in removals}
        return sorted(self.paths, key=damage.__getitem__)

    @cached_property
    def by_influence(self) -> list[str]:
        """The blocks by block influence (arXiv:2403.03853)."""
        scores = block_scores(self.graph, self.fit)
        return sorted(self.paths, key=lambda path: scores[path]["block_influence"])

    @cached_property
    def by_replacement(self) -> list[str]:
        """The blocks by the damage of their replacement, on four samples."""
        model, batch, damage = self.graph.model, self.fit[0].take(4), dict[str, float]()
        with torch.inference_mode():
            original = model(*batch.args)
            for path, fitted in self.replacements.items():
                with patch.object(model.get_submodule(path), "forward", fitted.module.forward):
                    damage[path] = float((model(*batch.args) - original).square().mean())
        return sorted(damage, key=damage.__getitem__)

    @cached_property
    def replacements(self) -> dict[str, FittedReplacement]:
        """One for each block."""
        spans = [span for span in find_spans(self.graph, build_segments(self.graph), 1) if span.end in self.paths]
        specs = [ReplacementSpec(span, self.kind) for span in spans if len(span.paths) == 1]
        return {fitted.span.end: fitted for fitted in fit_all(self.graph, self.fit, specs)}

    def in_order(self, chosen: list[str]) -> list[str]:
        """As they stand in the network."""
        return [path for path in self.paths if path in chosen]

    def removed(self, count: int, *, rival: bool = False, refit: bool = False) -> nn.Module:
        """Without the blocks; and with the maps that are left fitted to what is missing."""
        paths = self.in_order((self.by_influence if rival else self.by_removal)[:count])
        cut = remove_blocks(self.graph.model, self.fit[0].take(2), paths).eval()
        return refit_(self.graph, cut, [], self.fit, removed=paths) if refit else cut

    def replaced(self, count: int, config: RefitConfig | None = None) -> nn.Module:
        """With replacements; set in turn or refitted as `config` says."""
        cut, fitted = self.with_replacements(self.in_order(self.by_replacement[:count]))
        return refit_(self.graph, cut, fitted, self.fit, config=config) if config else cut

    def with_replacements(self, paths: list[str]) -> tuple[nn.Module, list[FittedReplacement]]:
        """A network with replacements for these blocks, and what they are."""
        fitted = [self.replacements[path] for path in paths]
        actions = [Replace(paths=list(each.span.paths), stand_in=each.stand_in) for each in fitted]
        modules = {each.span.end: copied(each.module) for each in fitted}
        return replace_spans_(analyze(copied(self.graph.model), self.fit[0].take(2)), actions, modules), fitted


WAYS: dict[str, Callable[[Cuts, int], nn.Module]] = {
    "replaced": lambda cuts, count: cuts.replaced(count),
    "replaced + set in turn": lambda cuts, count: cuts.replaced(count, RefitConfig(kept_segments=False)),
    "replaced + refitted": lambda cuts, count: cuts.replaced(count, RefitConfig()),
    "removed": lambda cuts, count: cuts.removed(count),
    "removed + refitted": lambda cuts, count: cuts.removed(count, refit=True),
    "removed by influence": lambda cuts, count: cuts.removed(count, rival=True),
    "removed by influence + refitted": lambda cuts, count: cuts.removed(count, rival=True, refit=True),
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
