import math
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from shoal.report import forest
from shoal.report.forest import Canvas, Group, Lane, Row
from shoal.report.readings import Change
from shoal.report.scales import for_differences


def lane(value: float, low: float, high: float, verdict: str = "undecided") -> Lane:
    return Lane("block", Change(value, low, high), verdict, "all about it")


def canvas(width: float = 970.0, ends: tuple[float, ...] = (-2.0, 60.0)) -> Canvas:
    return Canvas(width, for_differences(ends, 1.0), 1.0, "points", True, 12)


@pytest.mark.parametrize("width", [310.0, 970.0])
def test_all_is_drawn_inside(width: float) -> None:
    rows = [Row(f"stages.0.{i}", [lane(i, i - 1.5, i + 2.0), lane(0, -1, 1)]) for i in range(40)]
    root = ElementTree.fromstring(forest.body(Group("Stage 1", rows, "desc"), canvas(width), "f"))
    height = float(root.get("height"))
    assert float(root.get("width")) == width
    for line in root.iter("line"):
        assert 0 <= float(line.get("x1")) <= float(line.get("x2")) <= width
        assert float(line.get("y2")) <= height
    assert len([one for one in root.iter("g") if one.get("class") == "lane"]) == 80


def test_the_band_is_as_wide_as_the_tolerance() -> None:
    drawn = canvas()
    root = ElementTree.fromstring(forest.body(Group("Stage 1", [Row("a", [lane(0, -1, 1)])], ""), drawn, "f"))
    (band,) = [one for one in root.iter("rect") if one.get("class") == "band"]
    whisker = next(one for one in root.iter("line") if one.get("class", "").startswith("whisker"))
    assert float(band.get("x")) == float(whisker.get("x1"))
    assert float(band.get("x")) + float(band.get("width")) == pytest.approx(float(whisker.get("x2")), abs=0.02)


def test_an_interval_without_an_end_goes_to_the_edge_with_an_arrow() -> None:
    row = Row("a", [lane(0.5, -math.inf, math.inf)])
    root = ElementTree.fromstring(forest.body(Group("Stage 1", [row], ""), canvas(), "f"))
    assert len([one for one in root.iter("path") if one.get("class") == "arrow"]) == 2
    whisker = next(one for one in root.iter("line") if one.get("class", "").startswith("whisker"))
    assert float(whisker.get("x1")) == pytest.approx(canvas().left)
    assert float(whisker.get("x2")) == pytest.approx(canvas().right)


def test_a_marked_row_has_a_diamond_and_an_unmeasured_one_says_so() -> None:
    text = forest.body(Group("Layers", [Row("stem", [], marked=True)], ""), canvas(), "f")
    assert 'class="diamond"' in text
    assert "not measured" in text


def test_the_axis_is_hidden_from_those_who_listen() -> None:
    root = ElementTree.fromstring(forest.head(canvas()))
    assert root.get("aria-hidden") == "true"
    assert [text.text for text in root.iter("text")] == ["points →", "−1", "0", "1", "3", "10", "30"]


def test_labels_of_an_axis_do_not_overlap() -> None:
    root = ElementTree.fromstring(forest.head(canvas(200.0, (-90.0, 90.0))))
    spots = [(float(one.get("x")), one.text) for one in root.iter("text")][1:]
    assert all(b - a > 6.6 for (a, _), (b, _) in pairwise(spots))


def test_a_long_path_keeps_its_end() -> None:
    assert forest.fitted("encoder.layers.12.attention", 100.0) == "…s.12.attention"
    assert forest.fitted("stem", 100.0) == "stem"


def test_a_tooltip_says_when_there_is_no_interval() -> None:
    text = forest.tooltip("a, block", Change(0.5, -math.inf, math.inf), "nats", "undecided", 1)
    assert text == "a, block: undecided\n0.500 nats (interval without end), n = 1"


def test_a_name_cannot_become_markup() -> None:
    row = Row("<script>", [lane(0, -1, 1)])
    assert "<script" not in forest.body(Group("</svg>", [row], "<b>"), canvas(), "f")
