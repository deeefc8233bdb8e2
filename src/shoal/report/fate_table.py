"""The blocks of a compressed network as a table."""

from collections.abc import Sequence

from shoal.record import BlockRecord
from shoal.report import fates, numbers
from shoal.report.sortable import Column, Entry, Line, Table

_COLUMNS = (
    Column("Block"),
    Column("Stage", number=True),
    Column("Fate"),
    Column("Worth, nats", number=True),
    Column("Ratio", number=True),
    Column("Params", number=True),
    Column("Kind"),
    Column("Shortcut"),
    Column("Activation"),
    Column("Shape out", number=True),
)


def fate_table(blocks: Sequence[BlockRecord]) -> Table | None:
    """Every block with its fate; None where there are no blocks."""
    if not blocks:
        return None
    caption = f"The {len(blocks)} blocks of the original"
    return Table(
        "all-blocks",
        caption,
        "Filter blocks",
        "name, stage, removed …",
        _COLUMNS,
        [Line(block.path, _entries(block), block.fate) for block in blocks],
    )


def _entries(block: BlockRecord) -> list[Entry]:
    stays = "" if block.removable else f"must stay: {block.reason}" if block.reason else "must stay"
    interval = "" if block.worth_kl_interval is None else numbers.significant_interval(block.worth_kl_interval)
    return [
        Entry(str(block.stage), sort=block.stage),
        Entry(fates.fate(block), stays, chip=block.fate),
        Entry(numbers.significant(block.worth_kl), interval, sort=block.worth_kl),
        Entry(numbers.significant(block.residual_ratio), sort=block.residual_ratio),
        Entry(numbers.amount(block.params), sort=block.params),
        Entry(block.kind),
        Entry(block.shortcut),
        Entry(block.activation or numbers.MISSING),
        Entry(numbers.shape(block.out_shape), sort=block.out_shape[0] if block.out_shape else None),
    ]
