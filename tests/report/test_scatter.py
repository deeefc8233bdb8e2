import math
from xml.etree import ElementTree

from shoal.report.scatter import Point, scatter


def drawn(points: list[Point]) -> ElementTree.Element:
    return ElementTree.fromstring(scatter(points, "a score", "s", "what it shows"))


def marks(root: ElementTree.Element) -> list[ElementTree.Element]:
    return [one for one in root.iter() if (one.get("class") or "").startswith("mark")]


def test_a_mark_for_every_block_inside_the_picture() -> None:
    points = [Point(f"b{i}", 0.1 * i, 10.0 ** (i - 6), "non-trivial") for i in range(8)]
    root = drawn(points)
    assert len(marks(root)) == 8
    for mark in marks(root):
        assert 0 < float(mark.get("cx")) < float(root.get("width"))
        assert 0 < float(mark.get("cy")) < float(root.get("height"))


def test_blocks_in_one_place_are_counted() -> None:
    root = drawn([Point(f"b{i}", 0.0, 0.0, "trivial") for i in range(15)] + [Point("c", 1.0, 2.0, "non-trivial")])
    assert len(marks(root)) == 2
    assert "15 ×" in [text.text for text in root.iter("text")]
    titles = [title.text for title in root.iter("title")]
    assert any("b0: trivial" in title and "and 3 more" in title for title in titles)


def test_verdicts_in_one_place_do_not_hide_each_other() -> None:
    root = drawn(
        [Point("a", 1.0, 1.0, "trivial"), Point("b", 1.0, 1.0, "non-trivial"), Point("c", 2.0, 2.0, "trivial")]
    )
    assert len({(mark.get("cx"), mark.get("cy")) for mark in marks(root)}) == 3


def test_what_is_no_number_is_left_out() -> None:
    assert scatter([Point("a", math.nan, 1.0, "trivial"), Point("b", 1.0, math.inf, "trivial")], "x", "s", "") == ""
    assert scatter([], "x", "s", "") == ""


def test_a_name_cannot_become_markup() -> None:
    assert "<script" not in scatter([Point("<script>", 1.0, 1.0, "trivial")], "<script>", "s", "<script>")
