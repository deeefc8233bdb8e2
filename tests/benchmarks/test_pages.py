"""The tables and the picture of the benchmark with recovery are made of its results."""

import json
import sys
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("recovery-resnet56-0.*.json"), reverse=True)


@pytest.fixture(scope="module")
def script():
    """A script of the benchmarks, imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield import_module
    for name in [name for name in sys.modules if name.split(".")[0] in ("rivals", "recovery_page", "front_picture")]:
        del sys.modules[name]


def test_the_tables_of_the_page_are_those_of_the_results(script):
    page = (ROOT / "docs" / "figures.md").read_text(encoding="utf-8")
    assert script("recovery_page").with_tables(page, RESULTS) == page


def test_a_page_without_a_place_for_tables_is_refused(script):
    with pytest.raises(SystemExit, match="no place for tables"):
        script("recovery_page").with_tables("nothing", RESULTS)


def test_a_method_that_cannot_reach_a_point_says_how_fast_it_gets(script):
    cell = {"reached": False, "fastest_share": 0.33, "why": "it has one size"}
    row = {"point": 0.2, "together": {"shares": {}}, "cells": {"small": cell}}
    document = {"budget": "200 steps", "distillation": {"precision": "bf16"}, "points": [row], "tuned": {}}
    lines = list(script("recovery_page").table("file.json", document))
    assert lines[0].startswith("`file.json`: 200 steps each, mixed precision.")
    assert "not reached: fastest 33.0 %" in lines[-1]


def test_a_line_of_the_picture_holds_the_points_of_a_method_with_their_intervals(script):
    picture = script("front_picture")
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS]
    after = picture.lines(documents, "also", "quality")
    shares = [point.share for point in after["shoal", ""]]
    assert shares == sorted(shares)
    assert len(shares) >= 2
    cell = next(row for document in documents for row in document["points"])["cells"]["shoal"]["quality"]["also"]
    assert (100 * cell["top1"], 100 * cell["top1_drop"]) in [(point.top1, point.drop) for point in after["shoal", ""]]
    assert all(point.low <= point.drop <= point.high for points in after.values() for point in points)


def test_cuts_of_another_benchmark_have_lines_too(script):
    document = json.loads((ROOT / "benchmarks" / "results" / "frontier-resnet56.json").read_text(encoding="utf-8"))
    before = script("front_picture").lines([document], "also", "quality")
    assert {method for method, _ in before} == {"shoal", "greedy", "influence", "width"}
    cell = document["points"][0]["cells"]["greedy"]["quality"]["also"]
    assert 100 * cell["top1"] in [point.top1 for point in before["greedy", ""]]


def test_the_picture_is_svg_with_its_text_as_text_and_no_background(script):
    picture = script("front_picture")
    points = [picture.Point(0.4, 90.0, 1.0, 0.5, 1.5), picture.Point(0.5, 91.0, 0.0, -0.5, 0.5)]
    assert (points[1].speedup, points[0].original) == (2.0, 91.0)
    svg = picture.drawn({("shoal", ""): points}, {("shoal", ""): points, ("last-k", "200 steps"): points})
    root = ElementTree.fromstring(svg)
    texts = {"".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"before recovery", "after recovery", "Shoal", "last blocks, 200 steps"} <= texts
    assert "fill: #ffffff" not in svg
