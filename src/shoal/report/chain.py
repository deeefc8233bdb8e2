"""Chains of residual blocks as data for an HTML grid: a cell for each block, in lines that wrap with the page.

The bar in a cell is the damage of removing that block alone, on a logarithmic scale; its pattern tells what was done
with the block (a compression, a plan) or how it was judged (a scan).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Protocol, TypeVar

from shoal.record import BlockRecord, ScannedBlock
from shoal.report import numbers, scan_metrics
from shoal.report.damage import KL, Damage

_MAX_DECADES = 6
_LONGEST_NAME = 4
# Widths in pixels, to tell whether a label fits into its cells; the height of a bar bounds an upright label.
_CELL, _BAR, _LETTER = 34.0, 64.0, 6.4
_SEE_TABLE = "The table of blocks below has every number."

Legend = list[tuple[str, str]]


@dataclass(frozen=True)
class BlockCell:
    """One block: its short name, its CSS classes, the height of its bar in per cent, and its hover text.

    The label names a replacement, in the first of the cells it covers.
    """

    name: str
    style: str
    height: float | None
    title: str
    label: str = ""


@dataclass(frozen=True)
class ChainStage:
    """One stage and the facts in its heading."""

    number: int
    facts: str
    cells: Sequence[BlockCell]


@dataclass(frozen=True)
class ChainGrid:
    """A whole chain, with a text alternative and the labels of the bars' scale as (per cent, text)."""

    ident: str
    name: str
    desc: str
    stages: Sequence[ChainStage]
    ticks: Sequence[tuple[float, str]]

    @property
    def longest(self) -> int:
        """The number of cells in the longest stage."""
        return max(len(stage.cells) for stage in self.stages)

    @property
    def step(self) -> float:
        """The distance between two lines of the scale, in per cent."""
        return round(self.ticks[0][0] - self.ticks[1][0], 1) if len(self.ticks) > 1 else 100.0


class Staged(Protocol):
    """Whatever belongs to a stage."""

    @property
    def stage(self) -> int:
        """The number of the stage."""


_Block = TypeVar("_Block", bound=Staged)


def by_stage(blocks: Sequence[_Block]) -> list[tuple[int, list[_Block]]]:
    """The blocks of every stage, in order."""
    return [(number, list(members)) for number, members in groupby(blocks, key=lambda block: block.stage)]


@dataclass(frozen=True)
class Decades:
    """A logarithmic scale over whole decades, in per cent of a bar's height; without values it is empty."""

    low: int
    high: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Decades":
        """The scale that holds every positive finite value, six decades at most."""
        positive = [value for value in values if value is not None and 0 < value < math.inf]
        if not positive:
            return cls(0, 0)
        high = math.ceil(math.log10(max(positive)))
        low = math.floor(math.log10(min(positive)))
        return cls(min(max(low, high - _MAX_DECADES), high - 1), high)

    def at(self, value: float | None) -> float | None:
        """0 at the lowest decade or below, 100 at the highest; None for an unknown value."""
        if value is None or math.isnan(value):
            return None
        if value <= 0 or self.high == self.low:
            return 0.0
        return round(100 * min(1.0, max(0.0, (math.log10(value) - self.low) / (self.high - self.low))), 1)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Some four powers of ten."""
        span = self.high - self.low
        exponents = range(self.high, self.low - 1, -max(1, math.ceil(span / 3))) if span else ()
        return [
            (round(100 * (exponent - self.low) / span, 1), numbers.power_of_ten(exponent)) for exponent in exponents
        ]


def action_chain(blocks: Sequence[BlockRecord], ident: str, damage: Damage = KL) -> ChainGrid | None:
    """The blocks with the action taken on each; None without blocks."""
    if not blocks:
        return None
    scale = Decades.of(block.removal_kl for block in blocks)
    stages = [
        ChainStage(number, _kept_of(members), [_action_cell(block, scale, damage) for block in members])
        for number, members in by_stage(blocks)
    ]
    return ChainGrid(ident, "The chain of residual blocks", describe_actions(blocks), stages, scale.ticks)


def _kept_of(members: Sequence[BlockRecord]) -> str:
    kept = sum(block.action == "kept" for block in members)
    return f"{numbers.shape(members[-1].out_shape)} · {kept} of {len(members)} kept"


def _action_cell(block: BlockRecord, scale: Decades, damage: Damage) -> BlockCell:
    style = f"{block.action}{' projection' if block.shortcut == 'projection' else ''}"
    return BlockCell(_short(block.path), style, scale.at(block.removal_kl), action_title(block, damage))


def _short(path: str) -> str:
    last = path.rsplit(".", 1)[-1]
    return last if len(last) <= _LONGEST_NAME else ""


def action(block: BlockRecord) -> str:
    """What was done with a block: `kept, without unit 1`."""
    if not block.without:
        return block.action
    many = "s" if len(block.without) > 1 else ""
    return f"{block.action}, without unit{many} {', '.join(map(str, block.without))}"


def why_fixed(block: BlockRecord | ScannedBlock) -> str:
    """Why a block cannot be removed; empty for a removable block."""
    if block.removable:
        return ""
    return f"not removable: {block.reason}" if block.reason else "not removable"


def action_title(block: BlockRecord, damage: Damage = KL) -> str:
    """The hover text of a block, in lines."""
    figure = damage.figure(block.removal_kl)
    lines = [
        f"{block.path}: {action(block)}",
        *_what_it_is(block),
        "damage not measured" if figure == numbers.MISSING else f"damage {figure} if removed alone",
        why_fixed(block),
    ]
    return "\n".join(line for line in lines if line)


def _what_it_is(block: BlockRecord | ScannedBlock) -> list[str]:
    return [
        f"{block.kind}, {block.shortcut} shortcut, {numbers.amount(block.params)} parameters",
        f"{numbers.shape(block.in_shape)} to {numbers.shape(block.out_shape)}",
    ]


def describe_actions(blocks: Sequence[BlockRecord]) -> str:
    """The text alternative of a chain with its actions."""
    sentences = []
    for number, members in by_stage(blocks):
        clauses = [
            f"{name} {', '.join(paths)}"
            for name in ("removed", "replaced")
            if (paths := [block.path for block in members if block.action == name])
        ]
        clauses += [f"{block.path} {action(block)}" for block in members if block.without]
        sentences.append(f"Stage {number}: {len(members)} blocks, {'; '.join(clauses) or 'all kept'}.")
    return " ".join([*sentences, _SEE_TABLE])


def action_legend() -> Legend:
    """The signs of a chain with its actions: CSS classes and their meaning."""
    return [
        ("block kept", "kept"),
        ("block removed", "removed"),
        ("block replaced", "replaced"),
        *_SIGNS,
    ]


_SIGNS: Legend = [("block projection", "projection shortcut"), ("block unmeasured", "damage not measured")]


def verdict_chain(blocks: Sequence[ScannedBlock], metric: str, ident: str) -> ChainGrid | None:
    """The blocks of a scan with their verdicts; None without blocks."""
    if not blocks:
        return None
    scale = Decades.of(_kl(block) for block in blocks)
    stages = []
    for number, members in by_stage(blocks):
        trivial = scan_metrics.counts(members)["trivial"]
        facts = f"{numbers.shape(members[-1].out_shape)} · {trivial} of {len(members)} trivial"
        stages.append(ChainStage(number, facts, [_verdict_cell(block, metric, scale) for block in members]))
    return ChainGrid(ident, "The chain of residual blocks", describe_verdicts(blocks), stages, scale.ticks)


def _kl(block: ScannedBlock) -> float | None:
    ablation = scan_metrics.main(block)
    return None if ablation is None or not numbers.known(ablation.kl) else ablation.kl


def _verdict_cell(block: ScannedBlock, metric: str, scale: Decades) -> BlockCell:
    verdict = scan_metrics.verdict(block) or "unmeasured"
    style = f"{verdict}{' projection' if block.shortcut == 'projection' else ''}"
    return BlockCell(_short(block.path), style, scale.at(_kl(block)), verdict_title(block, metric))


def verdict_title(block: ScannedBlock, metric: str) -> str:
    """The hover text of a scanned block, in lines."""
    lines = [f"{block.path}: {scan_metrics.verdict(block) or 'not measured'}", *_what_it_is(block)]
    ablation = scan_metrics.main(block)
    if ablation is not None:
        measure = scan_metrics.MEASURES[metric]
        value, interval = scan_metrics.amount(ablation, metric)
        lines.append(f"{measure.name}: {value} {measure.unit} ({interval})")
        lines.append(f"KL {numbers.significant(ablation.kl)} nats, n = {numbers.count(ablation.n)}")
    return "\n".join(line for line in (*lines, why_fixed(block)) if line)


def describe_verdicts(blocks: Sequence[ScannedBlock]) -> str:
    """The text alternative of a chain with its verdicts."""
    sentences = []
    for number, members in by_stage(blocks):
        clauses = [
            f"{verdict}: {', '.join(paths)}"
            for verdict in scan_metrics.VERDICTS
            if (paths := [block.path for block in members if scan_metrics.verdict(block) == verdict])
        ]
        sentences.append(f"Stage {number}: {'; '.join([f'{len(members)} blocks', *clauses])}.")
    return " ".join([*sentences, _SEE_TABLE])


def verdict_legend() -> Legend:
    """The signs of a chain with its verdicts."""
    return [*((f"block {verdict}", verdict) for verdict in scan_metrics.VERDICTS), *_SIGNS]


def plan_chain(
    blocks: Sequence[BlockRecord], spans: Sequence[tuple[Sequence[str], str]], number: int
) -> ChainGrid | None:
    """The chain under one plan; None without blocks.

    Args:
        blocks: of the original, with the actions of the plan.
        spans: the paths and the kind of every replacement; what is not a block is left out.
        number: of the plan.
    """
    if not blocks:
        return None
    scale = Decades.of(block.removal_kl for block in blocks)
    covered = {path: i for i, (paths, _) in enumerate(spans) for path in paths}
    stages = []
    for stage, members in by_stage(blocks):
        cells: list[BlockCell] = []
        for span, run in groupby(members, key=lambda block: covered.get(block.path)):
            drawn = [_plan_cell(block, scale) for block in run]
            cells += drawn if span is None else _joined(drawn, spans[span][1])
        stages.append(ChainStage(stage, _kept_of(members), cells))
    return ChainGrid(
        f"plan-{number}-chain", f"The chain under plan {number}", count_actions(blocks), stages, scale.ticks
    )


def _plan_cell(block: BlockRecord, scale: Decades) -> BlockCell:
    return replace(_action_cell(block, scale, KL), title=f"{block.path}: {block.action}")


def _joined(cells: list[BlockCell], kind: str) -> list[BlockCell]:
    """Cells under one replacement: their borders form one box, and the first of them holds its kind if that fits."""
    long = _LETTER * len(kind)
    upright = long > _CELL * len(cells)
    label = "" if upright and long > _BAR else kind
    joined = [replace(cell, style=f"{cell.style} joined", title=f"{cell.title} by {kind}") for cell in cells]
    joined[0] = replace(joined[0], label=label, style=f"{joined[0].style} first{' upright' if upright else ''}")
    joined[-1] = replace(joined[-1], style=f"{joined[-1].style} last")
    return joined


def count_actions(blocks: Sequence[BlockRecord]) -> str:
    """The text alternative of a plan's chain: counts only, since the names are listed below it."""
    sentences = []
    for number, members in by_stage(blocks):
        counts = ((name, sum(block.action == name for block in members)) for name in ("kept", "removed", "replaced"))
        sentences.append(f"Stage {number}: {', '.join(f'{count} {name}' for name, count in counts if count)}.")
    return " ".join(sentences)


def plan_legend() -> Legend:
    """The signs of a plan's chain."""
    return [
        ("block kept", "kept"),
        ("block removed", "removed"),
        ("block replaced joined first last", "a fitted replacement for the blocks in the box"),
    ]
