"""The chain of a compressed network: which blocks were kept, which went, and what each was worth."""

from collections.abc import Sequence

from shoal.record import BlockRecord
from shoal.report import numbers, picture


def chain(blocks: Sequence[BlockRecord], width: float, ident: str = "chain") -> str:
    """The blocks with their fate as one SVG; empty text where there are none."""
    return picture.chain(stages(blocks), width, ident, describe(blocks))


def stages(blocks: Sequence[BlockRecord]) -> list[picture.Stage]:
    """The blocks with their fate, ready to be drawn."""
    return [_stage(*one) for one in picture.by_stage(blocks)]


def _stage(number: int, members: list[BlockRecord]) -> picture.Stage:
    kept = sum(block.fate == "kept" for block in members)
    facts = f"{numbers.shape(members[-1].out_shape)} · {kept} of {len(members)} kept"
    return picture.Stage(number, facts, [_cell(block) for block in members])


def _cell(block: BlockRecord) -> picture.Cell:
    return picture.Cell(
        path=block.path,
        worth=block.worth_kl,
        style=f"{block.fate}{'' if block.removable else ' fixed'}",
        fill="full" if block.fate == "kept" else "hatch",
        projection=block.shortcut == "projection",
        tooltip=tooltip(block),
    )


def describe(blocks: Sequence[BlockRecord]) -> str:
    """The picture in words, for those who do not see it."""
    parts = []
    for number, members in picture.by_stage(blocks):
        gone = [block.path for block in members if block.fate == "removed"]
        other = [block.path for block in members if block.fate == "replaced"]
        said = [f"removed {', '.join(gone)}"] if gone else []
        said += [f"replaced {', '.join(other)}"] if other else []
        said += [f"{block.path} {fate(block)}" for block in members if block.without]
        what = "; ".join(said) or "all kept"
        parts.append(f"Stage {number}: {len(members)} blocks, {what}.")
    return " ".join(parts) + " The table of blocks below has every number."


def fate(block: BlockRecord) -> str:
    """What became of a block: `kept, without unit 1`."""
    if not block.without:
        return block.fate
    many = "s" if len(block.without) > 1 else ""
    return f"{block.fate}, without unit{many} {', '.join(map(str, block.without))}"


def tooltip(block: BlockRecord) -> str:
    """All about a block, in lines."""
    worth = numbers.significant(block.worth_kl)
    lines = [
        f"{block.path}: {fate(block)}",
        f"{block.kind}, {block.shortcut} shortcut, {numbers.amount(block.params)} parameters",
        f"{numbers.shape(block.in_shape)} to {numbers.shape(block.out_shape)}",
        "worth not measured" if worth == numbers.MISSING else f"worth {worth} nats alone",
    ]
    if not block.removable:
        lines.append(f"cannot be removed: {block.reason}" if block.reason else "cannot be removed")
    return "\n".join(lines)


def legend() -> list[tuple[str, str]]:
    """Samples of the signs used, each a small decorative SVG with its meaning."""
    return [
        (picture.sample("kept", "full", "legend-kept"), "kept"),
        (picture.sample("removed", "hatch", "legend-removed"), "removed"),
        (picture.sample("replaced", "hatch", "legend-replaced"), "replaced by a stand-in"),
        *picture.signs(),
    ]
