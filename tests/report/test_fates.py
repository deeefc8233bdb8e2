from xml.etree import ElementTree

from handmade import make_blocks

from shoal.report import fates


def test_fate_is_shown_by_more_than_colour() -> None:
    root = ElementTree.fromstring(fates.chain(make_blocks(), 1000.0))
    for cell in root.iter("g"):
        bars = [rect for rect in cell.findall("rect") if rect.get("class") == "bar"]
        hatched = [bar for bar in bars if bar.get("fill") == "url(#chain-hatch)"]
        if "removed" in cell.get("class", ""):
            assert hatched == bars
        else:
            assert not hatched


def test_every_block_has_a_tooltip_and_projections_a_mark() -> None:
    blocks = make_blocks()
    root = ElementTree.fromstring(fates.chain(blocks, 1000.0))
    titles = [title.text for title in root.iter("title")][1:]
    assert titles == [fates.tooltip(block) for block in blocks]
    diamonds = [path for path in root.iter("path") if path.get("class") == "diamond"]
    assert len(diamonds) == 2


def test_the_description_names_what_was_removed() -> None:
    text = fates.describe(make_blocks())
    assert "Stage 1: 9 blocks, removed stages.0.1, stages.0.3" in text


def test_the_legend_explains_both_fates() -> None:
    assert [meaning for _, meaning in fates.legend()][:2] == ["kept", "removed"]


def test_stages_count_what_is_kept() -> None:
    first, *_ = fates.stages(make_blocks())
    assert (first.number, first.facts, len(first.cells)) == (1, "16 × 32 × 32 · 4 of 9 kept", 9)


def test_an_empty_chain_draws_nothing() -> None:
    assert fates.chain([], 1000.0) == ""


def test_a_block_that_lost_a_unit_says_so():
    blocks = make_blocks()
    blocks[0] = blocks[0].model_copy(update={"without": [1]})
    blocks[1] = blocks[1].model_copy(update={"fate": "kept", "without": [0, 1]})
    assert fates.fate(blocks[0]) == "kept, without unit 1"
    assert fates.fate(blocks[1]) == "kept, without units 0, 1"
    assert f"{blocks[0].path} kept, without unit 1" in fates.describe(blocks)
    assert fates.tooltip(blocks[0]).startswith(f"{blocks[0].path}: kept, without unit 1\n")
