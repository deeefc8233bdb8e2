"""The chain of a scanned network: what the answers lose with each block, and what can be said of it."""

from collections.abc import Sequence

from shoal.record import ScannedBlock, Verdict
from shoal.report import numbers, picture, readings

_FILLS: dict[Verdict | None, picture.Fill] = {"non-trivial": "full", "undecided": "weave", "trivial": "hatch"}


def chain(blocks: Sequence[ScannedBlock], metric: str, width: float, ident: str) -> str:
    """The blocks with their verdicts as one SVG; empty text where there are none."""
    stages = [_stage(number, members, metric) for number, members in picture.by_stage(blocks)]
    return picture.chain(stages, width, ident, describe(blocks))


def _stage(number: int, members: list[ScannedBlock], metric: str) -> picture.Stage:
    trivial = readings.counts(members)["trivial"]
    facts = f"{numbers.shape(members[-1].out_shape)} · {trivial} of {len(members)} trivial"
    return picture.Stage(number, facts, [_cell(block, metric) for block in members])


def _cell(block: ScannedBlock, metric: str) -> picture.Cell:
    one, verdict = readings.main(block), readings.verdict(block)
    return picture.Cell(
        path=block.path,
        worth=None if one is None or not numbers.known(one.kl) else one.kl,
        style=verdict or "unmeasured",
        fill=_FILLS.get(verdict, "full"),
        projection=block.shortcut == "projection",
        tooltip=tooltip(block, metric),
    )


def tooltip(block: ScannedBlock, metric: str) -> str:
    """All about a block, in lines."""
    lines = [
        f"{block.path}: {readings.verdict(block) or 'not measured'}",
        f"{block.kind}, {block.shortcut} shortcut, {numbers.amount(block.params)} parameters",
        f"{numbers.shape(block.in_shape)} to {numbers.shape(block.out_shape)}",
    ]
    one = readings.main(block)
    if one is not None:
        measure = readings.MEASURES[metric]
        value, interval = readings.amount(one, metric)
        lines.append(f"{measure.name}: {value} {measure.unit} ({interval})")
        lines.append(f"KL {numbers.significant(one.kl)} nats, n = {numbers.count(one.n)}")
    if not block.removable:
        lines.append(f"cannot be removed: {block.reason}" if block.reason else "cannot be removed")
    return "\n".join(lines)


def describe(blocks: Sequence[ScannedBlock]) -> str:
    """The picture in words, for those who do not see it."""
    parts = []
    for number, members in picture.by_stage(blocks):
        named = [(word, [b.path for b in members if readings.verdict(b) == word]) for word in readings.VERDICTS]
        said = "; ".join(f"{word}: {', '.join(paths)}" for word, paths in named if paths)
        parts.append(f"Stage {number}: {len(members)} blocks{'; ' if said else ''}{said}.")
    return " ".join(parts) + " The table of blocks below has every number."


def legend() -> list[tuple[str, str]]:
    """Samples of the signs used, each a small decorative SVG with its meaning."""
    cells = [(picture.sample(word, _FILLS[word], f"legend-{word}"), word) for word in readings.VERDICTS]
    return [*cells, *picture.signs()]
