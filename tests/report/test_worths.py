from xml.etree import ElementTree

import pytest
from scanned import scanned_blocks, unmeasured

from shoal.report import worths


def test_a_verdict_is_shown_by_more_than_colour() -> None:
    root = ElementTree.fromstring(worths.chain(scanned_blocks(), "top1", 1000.0, "c"))
    fills = {"non-trivial": None, "undecided": "url(#c-weave)", "trivial": "url(#c-hatch)"}
    seen = set()
    for cell in root.iter("g"):
        verdict = cell.get("class", "").removeprefix("block ")
        for bar in (rect for rect in cell.findall("rect") if rect.get("class") == "bar"):
            assert bar.get("fill") == fills[verdict]
            seen.add(verdict)
    assert seen == set(fills)


@pytest.mark.parametrize("width", [340.0, 1000.0])
def test_blocks_that_were_not_measured_are_drawn_as_such(width: float) -> None:
    root = ElementTree.fromstring(worths.chain(unmeasured().blocks, "top1", width, "c"))
    cells = [one for one in root.iter("g") if one.get("class", "").startswith("block")]
    assert len(cells) == 27
    assert cells[0].get("class") == "block unmeasured"
    assert [text.text for text in cells[0].findall("text")] == ["–", "0"]


def test_a_tooltip_says_all() -> None:
    lines = worths.tooltip(scanned_blocks()[0], "top1").splitlines()
    assert lines == [
        "stages.0.0: non-trivial",
        "BasicBlock, identity shortcut, 4.67 k parameters",
        "16 × 32 × 32 to 16 × 32 × 32",
        "Top-1 lost: 36.00 points (31.50 to 40.50)",
        "KL 0.900 nats, n = 400",
    ]
    assert worths.tooltip(unmeasured().blocks[0], "top1").endswith("cannot be removed: shared")


def test_the_description_names_every_block_by_verdict() -> None:
    text = worths.describe(scanned_blocks())
    assert "Stage 1: 9 blocks; non-trivial: stages.0.0, stages.0.4, stages.0.7; undecided:" in text


def test_the_legend_explains_the_verdicts() -> None:
    assert [meaning for _, meaning in worths.legend()][:3] == ["non-trivial", "undecided", "trivial"]
