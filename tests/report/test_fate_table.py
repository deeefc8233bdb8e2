from handmade import make_blocks

from shoal.report.fate_table import fate_table


def test_every_row_has_a_cell_for_every_column() -> None:
    table = fate_table(make_blocks())
    assert len(table.lines) == 27
    assert all(len(line.entries) == len(table.columns) - 1 for line in table.lines)


def test_a_block_that_must_stay_says_why() -> None:
    table = fate_table(make_blocks())
    line = next(line for line in table.lines if line.head == "stages.1.0")
    assert (line.entries[1].text, line.entries[1].detail) == ("kept", "must stay: the shortcut is a projection")
    assert line.entries[2].sort is None


def test_no_blocks_no_table() -> None:
    assert fate_table([]) is None
