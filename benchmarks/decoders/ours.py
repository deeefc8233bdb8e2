"""Shoal's own ways: removal one by one, the same with what is kept refitted, and plans."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from decoders.ground import Ground, without_layers
from shoal import Budget, CompressConfig, compress
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.measure import cost, reading_of
from shoal.pipeline.goals import RemoveBlocks
from shoal.pipeline.greedy import GreedyRemoval
from shoal.replace import refit_
from shoal.scanning import OutputDamage
from shoal.surgery import remove_blocks

Made = tuple[Any, dict[str, Any]]
_DEEPEST = 12


class Lines:
    """The journal of a choice in a file, so that it goes on where it was."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def append(self, line: dict[str, Any]) -> None:
        """One finished step."""
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def measured(self) -> list[dict[str, Any]]:
        """All so far."""
        return [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []


def batches(ids: torch.Tensor, size: int = 4) -> list[Batch]:
    """Mini-batches as a causal language model takes them."""
    return [Batch((), {"input_ids": part, "use_cache": False}, target=part) for part in ids.split(size)]


def order(ground: Ground, work: Path) -> tuple[Any, list[int]]:
    """The layers in the order in which Shoal removes them, and the analysed network."""
    data = batches(ground.choice, len(ground.choice))
    graph = analyze(ground.model, data[0].take(2))
    damage = OutputDamage.of(reading_of(graph.model, data), None)
    journal = Lines(work / "shoal-removal.jsonl")
    greedy = GreedyRemoval(graph, RemoveBlocks(_DEEPEST), data, data, damage, journal=journal)
    return graph, [int(step.removed.rpartition(".")[2]) for step in greedy.choose().steps]


def removal(ground: Ground, count: int, work: Path) -> Made:
    """`--remove N`: layers by the divergence from the original, one by one."""
    _, listed = order(ground, work)
    removed = sorted(listed[:count])
    return without_layers(ground.model, removed), {"removed": removed}


def refitted(ground: Ground, count: int, work: Path) -> Made:
    """The same layers removed; then the last linear map of every kept layer behind is refitted in closed form."""
    graph, listed = order(ground, work)
    removed = sorted(listed[:count])
    paths = [f"model.layers.{index}" for index in removed]
    cut = remove_blocks(ground.model, batches(ground.choice, 2)[0], paths).eval()
    refit_(graph, cut, [], batches(ground.fit, 16), removed=paths)
    return cut, {"removed": removed}


def plan(ground: Ground, count: int, work: Path) -> Made:
    """`--depth N` with the kind `folded`: the maps before removed spans take over, and what is kept is refitted.

    All plain transformers: the network that comes out is a Llama with fewer layers. A share of the fitting rows is held
    back to choose on.
    """
    return _planned(ground, Budget(depth=ground.count - count), work, f"plan-{count}", work / "tables")


def units(ground: Ground, count: int, work: Path) -> Made:
    """The same by units: attention and MLP may go apart, and two units count as a layer."""
    budget = Budget(depth=2 * (ground.count - count), grain="unit")
    return _planned(ground, budget, work, f"units-{count}", work / "unit-tables")


def units_by_macs(ground: Ground, count: int, work: Path) -> Made:
    """By units, with as many MACs left as without `count` whole layers."""
    return _planned(ground, _macs_without(ground, count), work, f"units-macs-{count}", work / "unit-tables")


def linear_attention(ground: Ground, count: int, work: Path) -> Made:
    """The same, and an attention may give way to one linear map."""
    budget, kinds = _macs_without(ground, count), ("folded", "linear_attention")
    return _planned(ground, budget, work, f"linear-attention-{count}", work / "unit-tables", kinds)


def _macs_without(ground: Ground, count: int) -> Budget:
    example = batches(ground.fit[:1])[0]
    cut = without_layers(ground.model, range(count))
    return Budget(macs=cost(cut, example).macs / cost(ground.model, example).macs, grain="unit")


def _planned(
    ground: Ground, budget: Budget, work: Path, name: str, tables: Path, kinds: tuple[str, ...] = ("folded",)
) -> Made:
    config = CompressConfig(stand_ins=kinds, tables=tables)
    size = 64 if ground.fit.is_cuda else 8  # a GPU waits for its orders where mini-batches are small
    result = compress(ground.model, batches(ground.fit, size), budget, config=config, callbacks=_print)
    (work / f"{name}.json").write_text(result.record.model_dump_json(indent=1))
    record = result.record
    note = {"removed": [*record.removed, *record.removed_units], "replaced": record.replaced}
    linear = result.plan.linear_attentions
    return result.model, {**note, "linear": linear} if linear else note


def _print(stage: str, done: int, total: int) -> None:
    print(f"{time.perf_counter():.0f} s  {stage}: {done} of {total}", file=sys.stderr, flush=True)
