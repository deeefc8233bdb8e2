"""How should a stand-in be fitted? Kernels, ridge targets, positions, weights by the loss, and how many images.

    python benchmarks/fits.py MODEL DATA [--weights F] [--mean ..] [--std ..] [--also DATA2] --work DIR --out FILE.json

Every cell fits stand-ins for the same spans one way, puts each into the network alone, and measures mean KL(original ||
changed) and agreement on test samples (no labels are used). A rerun goes on after the last finished cell. The learning
curve runs from 10 images to all there are. Rank correlation: damage by the tables of a plan against the KL on test.
"""

import argparse
import itertools
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rivals.command_line import data_of, network_parser
from scipy.stats import spearmanr
from torch import Tensor, nn

from shoal.batches import Batch, batches, call, logits_of
from shoal.blocks import BlockGraph, analyze
from shoal.files.writing import write_text
from shoal.measure import kl_per_sample, log_probabilities, machine
from shoal.pipeline.candidate_refit import span_forwards
from shoal.pipeline.data_splits import with_mixup
from shoal.preserve import evaluating, patched
from shoal.regress import Moments, fits
from shoal.replace import (
    ReplacementSpec,
    Span,
    build_segments,
    find_spans,
    fit_all,
    recording,
    students_of,
    train_students,
)
from shoal.replace.fitting import FittedReplacement, SpanMoments
from shoal.replace.kinds import MomentsView
from shoal.replace.modules import build_replacement, load_solution_
from shoal.replace.row_sampler import Window, extract_patches, gather_outputs, sample_grid
from shoal.sources import load_model
from shoal.store import Lines

LENGTHS = (1, 2, 4)
STEPS = 600
CURVE = (10, 30, 100, 300, 1000, 3000, 10**9)


@dataclass(frozen=True)
class Ground:
    """What every cell works on."""

    anatomy: BlockGraph
    spans: list[Span]
    images: list[Batch]
    tests: dict[str, list[Batch]]


def main() -> None:
    """Run the cells that are missing, then write and print the comparison."""
    args = _arguments()
    ground = _ground(args)
    args.work.mkdir(parents=True, exist_ok=True)
    lines = Lines(args.work / "cells.jsonl")
    cells = {one["cell"]: one for one in lines.read()}
    for name, fitted in _cells(ground, args.curve_only):
        if not name.startswith(args.only):
            continue
        if name not in cells:
            cells[name] = {"cell": name, **_measured(ground, fitted())}
            lines.append(cells[name])
        _show(cells[name])
    document = {
        "command": "python benchmarks/fits.py ...",
        "model": args.model.rsplit("/", 1)[-1],
        "spans": [one.name for one in ground.spans],
        "images": sum(batch.size for batch in ground.images),
        "tests": {name: sum(batch.size for batch in part) for name, part in ground.tests.items()},
        "cells": cells,
        "machine": machine("cpu").model_dump(mode="json"),
    }
    write_text(args.out, json.dumps(document, indent=1) + "\n")


def _cells(ground: Ground, curve_only: bool) -> Iterator[tuple[str, Any]]:
    some = _first(ground.images, 1000)
    if not curve_only:
        for kind in ("linear", "conv3", "conv5", "lowrank3/8"):
            yield f"kind {kind}, 1000 images", lambda kind=kind: _fit(ground, kind, some)
        for rows in (2, 5, 10, 40, 200):
            yield f"rows per unknown {rows}, 1000 images", lambda rows=rows: _fit(ground, "conv3", some, rows)
        for count in (10, 100, 1000):
            part = _first(ground.images, count)
            yield f"ridge towards 0, {count} images", lambda part=part: _towards_zero(ground, part)
        for kind in ("block", "narrow"):
            yield f"student {kind}, {STEPS} steps", lambda kind=kind: _students(ground, kind)
        for share in (0.5, 0.9):
            yield f"weighted by the loss {share}, 1000 images", lambda share=share: _weighted(ground, some, share)
    for count in CURVE:
        part = _first(ground.images, count)
        yield f"curve {sum(one.size for one in part)} images", lambda part=part: _fit(ground, "conv3", part)


def _fit(ground: Ground, kind: str, images: Sequence[Batch], rows: float = 40) -> list[FittedReplacement]:
    wanted = [ReplacementSpec(span, kind) for span in ground.spans if _suits(span, kind)]
    return fit_all(ground.anatomy, images, wanted, rows_per_unknown=rows)


def _students(ground: Ground, kind: str) -> list[FittedReplacement]:
    """Trained side by side on all images; where a student does not suit or is as large as its span, there is none."""
    wanted = students_of(ground.anatomy, build_segments(ground.anatomy), ground.spans, [kind])
    return train_students(ground.anatomy, ground.images, wanted, steps=STEPS).fitted


def _suits(span: Span, kind: str) -> bool:
    try:
        ReplacementSpec(span, kind)
    except Exception:  # noqa: BLE001 - a kind that does not suit says so by an error
        return False
    return True


def _towards_zero(ground: Ground, images: Sequence[Batch]) -> list[FittedReplacement]:
    """The same fit with a ridge that shrinks towards 0, not towards the shortcut."""

    class Zeroed(SpanMoments):
        def _shortcuts(self) -> Tensor:
            return torch.zeros(self.outputs, self.inputs, dtype=torch.float64)

    return _by_sums(ground, images, Zeroed)


def _by_sums(ground: Ground, images: Sequence[Batch], kind: type[SpanMoments]) -> list[FittedReplacement]:
    found = []
    samples = sum(batch.size for batch in images)
    sums = [kind(one.key, [one], samples) for one in (ReplacementSpec(span, "conv3") for span in ground.spans)]
    paths = sorted({path for span in ground.spans for path in (span.paths[0], span.end)})
    with evaluating(ground.anatomy.model), recording(ground.anatomy, paths) as seen:
        for batch in images:
            call(ground.anatomy.model, batch)
            for one in sums:
                one.add(seen.inputs[one.key.start], [seen.sums[end] for end in one.ends])
    like = next(ground.anatomy.model.parameters())
    for one in sums:
        found += one.solve_all(like)
    return found


def _weighted(ground: Ground, images: Sequence[Batch], share: float) -> list[FittedReplacement]:
    """Rows weighted by how much the loss feels an error there: |d CE / d sum|^2 for the original's own answer."""
    return [_one_weighted(ground, span, images, share) for span in ground.spans]


def _one_weighted(ground: Ground, span: Span, images: Sequence[Batch], share: float) -> FittedReplacement:
    wanted, model = ReplacementSpec(span, "conv3"), ground.anatomy.model
    sums = SpanMoments(wanted.key, [wanted], sum(batch.size for batch in images))
    for batch in images:
        felt = _felt(ground.anatomy, span, batch)
        with evaluating(model), recording(ground.anatomy, [span.paths[0], span.end]) as seen:
            call(model, batch)
        x, y = seen.inputs[span.paths[0]], seen.sums[span.end]
        positions = sample_grid(y.shape[2:], sums.sampler.per_sample, sums.sampler.generator)
        rows = extract_patches(x, positions, Window(3, span.stride, span.dilation)).double()
        outputs = gather_outputs(y, positions).double()
        weights = gather_outputs(felt[:, None], positions).double().flatten()
        weights = (1 - share) + share * weights / weights.mean().clamp(min=1e-30)
        held = torch.arange(len(rows)) < len(rows) // 5
        sums.held_out = sums.held_out.merged(_weighted_moments(rows[held], outputs[held], weights[held]))
        sums.train = sums.train.merged(_weighted_moments(rows[~held], outputs[~held], weights[~held]))
    target = sums._shortcuts()
    fit = fits(sums.train, sums.held_out, [slice(0, sums.train.outputs)], target=target)[0]
    stand_in = wanted.stand_in
    solution = wanted.type.solve(MomentsView(sums.train, sums.held_out, slice(0, len(target)), target), fit, stand_in)
    module = build_replacement(stand_in, next(model.parameters()))
    load_solution_(module, solution)
    return FittedReplacement(span, "conv3", stand_in, module, fit.ridge, fit.r2_fit, fit.r2_held_out)


def _weighted_moments(x: Tensor, y: Tensor, weights: Tensor) -> Moments:
    """Moments in which a row of weight w counts as w rows."""
    found = Moments(x.shape[1], y.shape[1], joint=False)
    total = weights.sum()
    found.n = max(1, round(float(total)))
    found.mean_x, found.mean_y = (weights @ x) / total, (weights @ y) / total
    x, y = x - found.mean_x, y - found.mean_y
    found.xx, found.xy = x.T @ (weights[:, None] * x), x.T @ (weights[:, None] * y)
    found.yy = (weights[:, None] * y.square()).sum(dim=0)
    return found


def _felt(anatomy: BlockGraph, span: Span, batch: Batch) -> Tensor:
    """Squared gradient of the loss of the original's own answer by the sum at the end of the span, (n, H, W)."""
    caught: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        output.retain_grad()
        caught.append(output)
        return output

    module = anatomy.model.get_submodule(span.paths[-1])
    handle = module.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            anatomy.model.eval()
            logits = logits_of(anatomy.model(batch.args[0].clone().requires_grad_()))
            torch.nn.functional.cross_entropy(logits, logits.argmax(dim=1), reduction="sum").backward()
    finally:
        handle.remove()
        anatomy.model.zero_grad(set_to_none=True)
    return caught[0].grad.square().sum(dim=1)


def _measured(ground: Ground, fitted: Sequence[FittedReplacement]) -> dict[str, Any]:
    found: dict[str, Any] = {"r2_held_out": {one.span.name: one.r2_held_out for one in fitted}}
    model = ground.anatomy.model
    for name, part in ground.tests.items():
        kl: dict[str, list[Tensor]] = {one.span.name: [] for one in fitted}
        same: dict[str, list[Tensor]] = {one.span.name: [] for one in fitted}
        with evaluating(model):
            for batch in part:
                original = logits_of(call(model, batch))
                for one in fitted:
                    with patched(span_forwards(model, one.span, one.module)):
                        output = logits_of(call(model, batch))
                    kl[one.span.name].append(kl_per_sample(log_probabilities(original), output))
                    same[one.span.name].append((output.argmax(1) == original.argmax(1)).double())
        found[name] = {
            span: {"kl": float(torch.cat(kl[span]).mean()), "agreement": float(torch.cat(same[span]).mean())}
            for span in kl
        }
    names = list(ground.tests)
    for first, second in itertools.pairwise(names):
        pairs = [(found[first][span]["kl"], found[second][span]["kl"]) for span in found[first]]
        found[f"rank correlation {first}, {second}"] = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    return found


def _show(cell: dict[str, Any]) -> None:
    parts = [key for key in cell if isinstance(cell[key], dict) and key != "r2_held_out"]
    said = [
        f"{part}: KL {statistics.fmean(one['kl'] for one in cell[part].values()):.4f}, "
        f"agreement {100 * statistics.fmean(one['agreement'] for one in cell[part].values()):.2f} %"
        for part in parts
    ]
    r2 = statistics.fmean(cell["r2_held_out"].values())
    print(f"{cell['cell']:<40} R2 {r2:.4f}; {'; '.join(said)}", flush=True)


def _first(images: Sequence[Batch], count: int) -> list[Batch]:
    found: list[Batch] = []
    left = count
    for batch in images:
        if left <= 0:
            break
        found.append(batch.take(min(left, batch.size)))
        left -= batch.size
    return found


def _ground(args: argparse.Namespace) -> Ground:
    model = load_model(args.model, args.weights).model
    data = data_of(args, args.data)
    images = [Batch(one.args) for one in itertools.chain(batches(data.calibration(augment=True)))]
    held_back = _first([Batch(one.args) for one in batches(data.validation(augment=True))], 300)
    tests = {"held back, blended": with_mixup(held_back), "test": [Batch(one.args) for one in batches(data.test())]}
    if args.also:
        other = data_of(args, args.also)
        tests["second set"] = _first([Batch(one.args) for one in batches(other.test())], args.second)
    anatomy = analyze(model.eval(), images[0].take(2))
    line = build_segments(anatomy)
    every = [one for one in find_spans(anatomy, line, max(LENGTHS)) if one.stop - one.start in LENGTHS]
    spans = [one for one in every if _suits(one, "conv3")][:: args.every]
    return Ground(anatomy, spans, images, tests)


def _arguments() -> argparse.Namespace:
    parser = network_parser(__doc__)
    parser.set_defaults(batch_size=100)
    parser.add_argument("--also", help="a second data set; its test part")
    parser.add_argument("--second", type=int, default=1000, help="samples of it")
    parser.add_argument("--every", type=int, default=8, help="only every so manieth span")
    parser.add_argument("--curve-only", action="store_true")
    parser.add_argument("--only", default="", help="only cells whose name begins so")
    parser.add_argument("--work", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
