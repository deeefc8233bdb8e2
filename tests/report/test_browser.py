"""The pages in a real browser: no console errors, no sideways scrolling, tables, plots and axes that work."""

import html
import json
import re
from pathlib import Path

import pytest
from browsing import CONTRAST, DARK, browse, probed
from handmade import bare_record, make_blocks, make_record
from planned import planned_record
from recovered import recovered_record
from scanned import ODD, evil_scan, make_scan, with_second

from shoal.record import Record
from shoal.report import render, render_scan

pytestmark = pytest.mark.browser


def many_blocks() -> Record:
    blocks = make_blocks(67)
    return make_record(blocks=blocks, removed=[block.path for block in blocks if block.action == "removed"])


def long_names() -> Record:
    blocks = [b.model_copy(update={"path": f"encoder{'_very_long' * 12}.{i}"}) for i, b in enumerate(make_blocks())]
    removed = [block.path for block in blocks if block.action == "removed"]
    return make_record(blocks=blocks, removed=removed, model="x" * 200, command="shoal " + "y" * 300)


@pytest.mark.parametrize("make", [make_record, bare_record, many_blocks, long_names, planned_record, recovered_record])
@pytest.mark.parametrize("width", [1280, 768, 390, 320])
def test_the_page_does_not_scroll_sideways(chromium: str, tmp_path: Path, make, width: int) -> None:
    probe = "const root = page.documentElement; return [root.scrollWidth, root.clientWidth];"
    needed, there = probed(chromium, render(make()), width, probe, tmp_path)
    assert needed <= there


def tiny_figures() -> Record:
    """Damages of a few millionths, and names as transformers has them."""
    made = make_record()
    blocks = [
        block.model_copy(update={"path": f"model.backbone.encoder.layers.{i}.bottleneck", "kind": "HubertEncoderLayer"})
        for i, block in enumerate(made.blocks)
    ]
    steps = [
        step.model_copy(update={"kl": 1e-3 * step.kl, "kl_interval": tuple(1e-3 * end for end in step.kl_interval)})
        for step in made.steps
    ]
    return made.model_copy(update={"blocks": blocks, "steps": steps})


def test_in_a_usual_window_no_tick_is_cut_and_no_column_is_behind_a_scroll_bar(chromium: str, tmp_path: Path) -> None:
    probe = """
    const table = page.querySelector("table.sortable").parentElement;
    const cut = [...page.querySelectorAll(".plots.wide svg text")].filter((one) => {
      const inner = one.getBoundingClientRect(), outer = one.ownerSVGElement.getBoundingClientRect();
      return inner.left < outer.left || inner.right > outer.right;
    });
    return [table.scrollWidth - table.clientWidth, cut.map((one) => one.textContent)];
    """
    beyond, cut = probed(chromium, render(tiny_figures()), 1185, probe, tmp_path)  # 1,200 with a scroll bar
    assert (beyond, cut) == (0, [])


def test_what_scrolls_can_be_reached_by_keyboard(chromium: str, tmp_path: Path, record: Record) -> None:
    probe = """
    const wide = [...page.querySelectorAll("body *")].filter((one) => one.scrollWidth > one.clientWidth + 1
      && ["auto", "scroll"].includes(page.defaultView.getComputedStyle(one).overflowX));
    return [wide.length, wide.filter((one) => one.tabIndex < 0).length];
    """
    scrolling, unreachable = probed(chromium, render(record), 390, probe, tmp_path)
    assert scrolling > 0
    assert unreachable == 0


def test_the_table_sorts_and_filters(chromium: str, tmp_path: Path, record: Record) -> None:
    probe = """
    const table = page.querySelector("table.sortable");
    const heads = [...table.tHead.rows[0].cells];
    const first = () => table.tBodies[0].rows[0].cells[0].textContent;
    const last = () => [...table.tBodies[0].rows].at(-1).cells[0].textContent;
    const worth = heads.find((one) => one.textContent.includes("Damage"));
    worth.querySelector("button").click();
    const up = [first(), last(), worth.getAttribute("aria-sort")];
    worth.querySelector("button").click();
    const down = [first(), last(), worth.getAttribute("aria-sort")];
    const input = page.querySelector(".filter input");
    input.value = "removed STAGES.1";
    input.dispatchEvent(new page.defaultView.Event("input"));
    const shown = [...table.tBodies[0].rows].filter((row) => !row.hidden).length;
    return { buttons: heads.every((one) => one.querySelector("button")), up, down, shown,
      said: page.querySelector(".filter output").textContent };
    """
    found = probed(chromium, render(record), 1280, probe, tmp_path)
    assert found == {
        "buttons": True,
        "up": ["stages.0.5", "stages.2.0", "ascending"],
        "down": ["stages.0.0", "stages.2.0", "descending"],
        "shown": 5,
        "said": "5 of 27 shown",
    }


@pytest.mark.parametrize("flags", [(), (DARK,)], ids=["light", "dark"])
def test_text_has_enough_contrast(chromium: str, tmp_path: Path, flags: tuple[str, ...]) -> None:
    missed = planned_record().model_copy(update={"reached": False, "steps": make_record().steps})
    background, low = probed(chromium, render(missed), 1280, CONTRAST, tmp_path, *flags)
    assert background == ("rgb(18, 25, 28)" if flags else "rgb(251, 250, 247)")
    assert low == []


@pytest.mark.parametrize("flags", [(), (DARK,)], ids=["light", "dark"])
def test_the_page_itself_opens_without_complaint(
    chromium: str, tmp_path: Path, record: Record, flags: tuple[str, ...]
) -> None:
    page, picture = tmp_path / "report.html", tmp_path / "shot.png"
    page.write_text(render(record), encoding="utf-8")
    _, console = browse(chromium, page, tmp_path, f"--screenshot={picture}", "--window-size=1280,2000", *flags)
    assert console == []
    assert picture.stat().st_size > 20_000
    dom, console = browse(chromium, page, tmp_path, "--dump-dom", *flags)
    assert console == []
    assert 'aria-sort="none"' in dom


# Which plans can be seen, whether the chains inside have their cells, and which point says it is open.
SEEN = """
    const seen = () => {
      const open = [...document.querySelectorAll(".plan")].filter((one) => one.getClientRects().length);
      const cells = open.map((one) => [...one.querySelectorAll(".block .box")]
        .filter((box) => box.getBoundingClientRect().width > 20).length);
      const marked = [...document.querySelectorAll("svg a[aria-current]")]
        .filter((one) => one.getClientRects().length && one.tabIndex === 0).map((one) => one.getAttribute("href"));
      return [open.map((one) => one.id), cells, marked];
    };
    """


def acted(chromium: str, folder: Path, text: str, script: str, *flags: str) -> object:
    """What a script finds that is written into the page itself: a frame made of a string has no address of its own."""
    page = folder / "report.html"
    added = f"""<pre id="found"></pre><script>window.addEventListener("load", async () => {{
      const tick = () => new Promise((done) => setTimeout(done, 50));
      {script}
    }});</script></body>"""
    page.write_text(text.replace("</body>", added), encoding="utf-8")
    dom, console = browse(chromium, page, folder, "--dump-dom", "--virtual-time-budget=5000", *flags)
    assert console == []
    found = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert found
    return json.loads(html.unescape(found[1]))


@pytest.mark.parametrize("width", [1280, 500])
def test_a_point_opens_the_picture_of_its_plan(chromium: str, tmp_path: Path, width: int) -> None:
    script = f"""{SEEN}
      const point = (n) => [...document.querySelectorAll(`svg a[href="#plan-${{n}}"]`)]
        .find((one) => one.getClientRects().length);
      const steps = [seen()];
      point(7).dispatchEvent(new MouseEvent("click", {{ bubbles: true, cancelable: true }}));
      await tick();
      steps.push(seen());
      document.querySelector("#plan-7 .pager a[href='#plan-6']").click();
      await tick();
      steps.push(seen());
      document.querySelector("#plan-6 .pager a[href='#plan']").click();
      await tick();
      steps.push(seen());
      const stops = [...document.querySelectorAll("svg a")].filter((one) => one.getClientRects().length
        && one.tabIndex === 0).length;
      document.getElementById("found").textContent = JSON.stringify([steps, stops]);"""
    steps, stops = acted(chromium, tmp_path, render(planned_record()), script, f"--window-size={width},900")
    closed = [["plan-8"], [27], []]
    assert steps == [closed, [["plan-7"], [27], ["#plan-7"]], [["plan-6"], [27], ["#plan-6"]], closed]
    assert stops == 24


def test_without_its_script_the_page_opens_plans_too(chromium: str, tmp_path: Path) -> None:
    text = render(planned_record()).replace('"use strict";', "if (true) throw 1; /*", 1)
    text = re.sub(r"<script>if \(true\).*?</script>", "", text, flags=re.DOTALL)
    script = f"""{SEEN}
      document.querySelector('svg a[href="#plan-7"]').dispatchEvent(
        new MouseEvent("click", {{ bubbles: true, cancelable: true }}));
      await tick();
      document.getElementById("found").textContent = JSON.stringify(seen());"""
    assert acted(chromium, tmp_path, text, script) == [["plan-7"], [27], []]


def test_a_page_of_markup_runs_nothing(chromium: str, tmp_path: Path) -> None:
    evil = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
    blocks = [b.model_copy(update={"path": f"{evil}{i}"}) for i, b in enumerate(make_blocks())]
    record = make_record(blocks=blocks, command=evil, warnings=[evil], model=evil)
    title, images, scripts = probed(
        chromium,
        render(record),
        1280,
        'return [page.title, page.querySelectorAll("img").length, page.querySelectorAll("script").length];',
        tmp_path,
    )
    assert title.startswith("14 of 27 blocks removed")
    assert (images, scripts) == (0, 2)


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
    const box = page.querySelector(".forest");
    box.scrollTop = 300;
    const gap = box.querySelector(".head").getBoundingClientRect().top - box.getBoundingClientRect().top;
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
