import math
from xml.etree import ElementTree

import pytest
from handmade import make_blocks

from shoal.report import picture


@pytest.mark.parametrize("per_stage", [1, 9, 67])
@pytest.mark.parametrize("width", [340.0, 1000.0])
def test_every_block_is_drawn_inside_the_picture(per_stage: int, width: float) -> None:
    blocks = make_blocks(per_stage)
    root = ElementTree.fromstring(picture.chain(blocks, width))
    cells = [group for group in root.iter("g") if group.get("class", "").startswith("block")]
    assert len(cells) == len(blocks)
    assert float(root.get("width")) <= width
    for rect in root.iter("rect"):
        assert float(rect.get("x")) + float(rect.get("width")) <= float(root.get("width"))
        assert float(rect.get("y")) + float(rect.get("height")) <= float(root.get("height"))


def test_fate_is_shown_by_more_than_colour() -> None:
    root = ElementTree.fromstring(picture.chain(make_blocks(), 1000.0))
    for cell in root.iter("g"):
        bars = [rect for rect in cell.findall("rect") if rect.get("class") == "bar"]
        hatched = [bar for bar in bars if bar.get("fill") == "url(#chain-hatch)"]
        if "removed" in cell.get("class", ""):
            assert hatched == bars
        else:
            assert not hatched


def test_every_block_has_a_tooltip_and_projections_a_mark() -> None:
    blocks = make_blocks()
    root = ElementTree.fromstring(picture.chain(blocks, 1000.0))
    titles = [title.text for title in root.iter("title")][1:]
    assert titles == [picture.tooltip(block) for block in blocks]
    diamonds = [path for path in root.iter("path") if path.get("class") == "diamond"]
    assert len(diamonds) == 2


def test_the_description_names_what_was_removed() -> None:
    text = picture.describe(make_blocks())
    assert "Stage 1: 9 blocks, removed stages.0.1, stages.0.3" in text


def test_an_empty_chain_draws_nothing() -> None:
    assert picture.chain([], 1000.0) == ""


@pytest.mark.parametrize("worths", [[], [None, 0.0, -1e-9, math.nan], [0.1], [1e-12, 1e3], [1.0, 10.0]])
def test_bars_stay_inside_their_cells(worths: list[float | None]) -> None:
    blocks = [block.model_copy(update={"worth_kl": worth}) for block, worth in zip(make_blocks(), worths, strict=False)]
    scale = picture.scale_of(blocks)
    assert scale.high - scale.low <= 6
    for block in blocks:
        if block.worth_kl is not None:
            assert 0.0 <= scale.height(block.worth_kl) <= 1.0
    picture.chain(blocks, 340.0)


def test_a_name_cannot_become_markup() -> None:
    block = make_blocks()[0].model_copy(update={"path": "<script>alert(1)</script>", "kind": "</svg>"})
    drawn = picture.chain([block], 340.0)
    assert "<script" not in drawn
    assert drawn.count("</svg>") == 1
