import math
from xml.etree import ElementTree

import pytest

from shoal.report.picture import Cell, Stage, by_stage, chain, layout
from shoal.report.scales import decades


def cell(path: str = "stages.0.1", worth: float | None = 0.1, **changes: object) -> Cell:
    values = {"path": path, "worth": worth, "style": "kept", "fill": "full", "projection": False, "tooltip": path}
    return Cell(**{**values, **changes})


@pytest.mark.parametrize("per_stage", [1, 9, 67])
@pytest.mark.parametrize("width", [340.0, 1000.0])
def test_every_block_is_drawn_inside_the_picture(per_stage: int, width: float) -> None:
    stages = [Stage(n, "facts", [cell(worth=0.01 * (i + 1)) for i in range(per_stage)]) for n in (1, 2, 3)]
    root = ElementTree.fromstring(chain(stages, width, "chain", "what it shows"))
    cells = [group for group in root.iter("g") if group.get("class", "").startswith("block")]
    assert len(cells) == 3 * per_stage
    assert float(root.get("width")) <= width
    for rect in root.iter("rect"):
        assert float(rect.get("x")) + float(rect.get("width")) <= float(root.get("width"))
        assert float(rect.get("y")) + float(rect.get("height")) <= float(root.get("height"))


@pytest.mark.parametrize("worths", [[None], [0.0, -1e-9, math.nan], [0.1], [1e-12, 1e3], [1.0, 10.0]])
def test_bars_stay_inside_their_cells(worths: list[float | None]) -> None:
    root = ElementTree.fromstring(chain([Stage(1, "", [cell(worth=one) for one in worths])], 340.0, "c", ""))
    high = max(float(rect.get("height")) for rect in root.iter("rect") if rect.get("class") == "box")
    assert all(float(rect.get("height")) <= high for rect in root.iter("rect"))
    assert all(0.0 <= decades(worths).at(one) <= 1.0 for one in worths if one is not None and not math.isnan(one))


def test_a_fill_is_the_pattern_of_this_picture() -> None:
    text = chain([Stage(1, "", [cell(fill="hatch"), cell(fill="weave")])], 340.0, "mine", "")
    for name in ("hatch", "weave"):
        assert f'id="mine-{name}"' in text
        assert f'fill="url(#mine-{name})"' in text


def test_a_name_cannot_become_markup() -> None:
    drawn = chain([Stage(1, "</svg>", [cell("<script>alert(1)</script>")])], 340.0, "c", "<script>")
    assert "<script" not in drawn
    assert drawn.count("</svg>") == 1


def test_a_long_stage_goes_on_in_the_next_line() -> None:
    places = layout([Stage(1, "", [cell(str(i)) for i in range(12)]), Stage(2, "", [cell("last")])], 340.0)
    assert [len(line.cells) for line in places.lines] == [9, 3, 1]
    assert [stage.number for stage, _ in places.names] == [1, 2]
    tops = [line.top for line in places.lines]
    assert tops[0] > places.names[0][1]
    assert tops[0] < tops[1] < places.names[1][1] < tops[2] < places.height
    assert places.x(8) + places.size < places.width


def test_an_empty_chain_draws_nothing() -> None:
    assert chain([], 1000.0, "c", "") == ""


def test_blocks_are_grouped_by_stage_in_order() -> None:
    class Block:
        def __init__(self, stage: int) -> None:
            self.stage = stage

    blocks = [Block(1), Block(1), Block(2)]
    assert by_stage(blocks) == [(1, blocks[:2]), (2, blocks[2:])]
