"""The page of a scan in a real browser: no console errors, no sideways scrolling, tables and axes that work."""

from pathlib import Path

import pytest
from browsing import CONTRAST, DARK, browse, probed
from scanned import ODD, evil_scan, make_scan, with_second

from shoal.report import render_scan

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("make", [make_scan, *ODD])
@pytest.mark.parametrize("width", [1280, 390, 320])
def test_a_scan_does_not_scroll_sideways(chromium: str, tmp_path: Path, make, width: int) -> None:
    probe = "const root = page.documentElement; return [root.scrollWidth, root.clientWidth];"
    needed, there = probed(chromium, render_scan(make()), width, probe, tmp_path)
    assert needed <= there


@pytest.mark.parametrize("width", [1280, 390])
def test_every_box_that_scrolls_can_be_reached_by_keyboard(chromium: str, tmp_path: Path, width: int) -> None:
    probe = """
    const boxes = [...page.querySelectorAll("body *")].filter((one) =>
      (one.scrollWidth > one.clientWidth + 1 || one.scrollHeight > one.clientHeight + 1)
      && ["auto", "scroll"].includes(page.defaultView.getComputedStyle(one).overflowX));
    return [boxes.length, boxes.filter((one) => one.tabIndex < 0).length];
    """
    scrolling, unreachable = probed(chromium, render_scan(with_second()), width, probe, tmp_path)
    assert scrolling > 3
    assert unreachable == 0


def test_the_axis_stays_in_sight_while_rows_scroll(chromium: str, tmp_path: Path) -> None:
    probe = """
    const box = page.querySelector(".forest.wide");
    box.scrollTop = 300;
    const gap = box.querySelector(".axis").getBoundingClientRect().top - box.getBoundingClientRect().top;
    return [box.scrollTop, gap, box.scrollHeight > box.clientHeight];
    """
    scrolled, gap, longer = probed(chromium, render_scan(make_scan()), 1280, probe, tmp_path)
    assert longer
    assert scrolled == 300
    assert 0 <= gap <= 2


def test_tables_of_a_scan_sort_and_filter_each_by_itself(chromium: str, tmp_path: Path) -> None:
    probe = """
    const table = page.getElementById("layers-table");
    const heads = [...table.tHead.rows[0].cells];
    const lost = heads.find((one) => one.textContent.includes("Top-1 lost"));
    lost.querySelector("button").click();
    lost.querySelector("button").click();
    const input = page.getElementById("layers-table-filter");
    input.value = "changes non-trivial";
    input.dispatchEvent(new page.defaultView.Event("input"));
    const shown = (name) => [...page.getElementById(name).tBodies[0].rows].filter((row) => !row.hidden).length;
    return [table.tBodies[0].rows[0].cells[0].textContent, lost.getAttribute("aria-sort"), shown("layers-table"),
      shown("blocks-table"), new Set([...page.querySelectorAll("[id]")].map((one) => one.id)).size
      === page.querySelectorAll("[id]").length];
    """
    found = probed(chromium, render_scan(make_scan()), 1280, probe, tmp_path)
    assert found == ["stem", "descending", 4, 27, True]


@pytest.mark.parametrize("flags", [(), (DARK,)], ids=["light", "dark"])
def test_text_of_a_scan_has_enough_contrast(chromium: str, tmp_path: Path, flags: tuple[str, ...]) -> None:
    background, low = probed(chromium, render_scan(with_second()), 1280, CONTRAST, tmp_path, *flags)
    assert background == ("rgb(18, 25, 28)" if flags else "rgb(251, 250, 247)")
    assert low == []


def test_a_scan_opens_without_complaint_and_makes_no_request(chromium: str, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(render_scan(with_second()), encoding="utf-8")
    dom, console = browse(chromium, page, tmp_path, "--dump-dom")
    assert console == []
    assert 'aria-sort="none"' in dom


def test_a_scan_full_of_markup_runs_nothing(chromium: str, tmp_path: Path) -> None:
    probe = 'return [page.querySelectorAll("img").length, page.querySelectorAll("script").length];'
    assert probed(chromium, render_scan(evil_scan()), 1280, probe, tmp_path) == [0, 2]
