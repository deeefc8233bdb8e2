"""Chromium without a window, for tests that open a page."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--v=0",
    # names resolve to nothing: the page cannot reach a network even where there is one
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
DARK = "--blink-settings=preferredColorScheme=0"


def find_chromium() -> str:
    for name in ("chromium", "google-chrome", "chromium-browser"):
        found = shutil.which(name)
        if found:
            return found
    pytest.skip("needs Chromium or Chrome on the PATH")


def browse(chromium: str, page: Path, folder: Path, *flags: str) -> tuple[str, list[str]]:
    """The DOM after the scripts ran, and the lines of the console."""
    command = [chromium, *_FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def framed(page_text: str, width: int, probe: str, folder: Path) -> Path:
    """A page that holds the report in a frame of `width` pixels, and writes down what `probe` finds in it.

    A window cannot be as narrow as a phone, a frame can; the report's own policy stays in force inside.
    """
    page = folder / "frame.html"
    page.write_text(
        f"""<!doctype html><body><pre id="found"></pre>
        <iframe id="frame" style="border:0;width:{width}px;height:900px"
          srcdoc="{html.escape(page_text)}"></iframe>
        <script>
        document.getElementById("frame").addEventListener("load", (event) => {{
          const page = event.target.contentDocument;
          document.getElementById("found").textContent = JSON.stringify((() => {{ {probe} }})());
        }});
        </script>""",
        encoding="utf-8",
    )
    return page


def probed(chromium: str, page_text: str, width: int, probe: str, folder: Path, *flags: str) -> object:
    dom, console = browse(chromium, framed(page_text, width, probe, folder), folder, "--dump-dom", *flags)
    assert console == []
    found = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert found
    return json.loads(html.unescape(found[1]))


# The page's background, and the texts whose contrast with what lies behind them is below 4.5.
CONTRAST = """
    const view = page.defaultView;
    const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92
      : ((c + 0.055) / 1.055) ** 2.4).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (one) => {
      for (; one; one = one.parentElement) {
        const colour = parts(view.getComputedStyle(one).backgroundColor);
        if (colour.length === 3) return colour;
      }
      return [255, 255, 255];
    };
    const low = [];
    for (const one of page.querySelectorAll("body *")) {
      const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
      if (!own || ["SCRIPT", "TITLE", "DESC", "title", "desc"].includes(one.tagName)) continue;
      const style = view.getComputedStyle(one);
      const ink = one.namespaceURI.endsWith("svg") ? style.fill : style.color;
      const [a, b] = [light(parts(ink)), light(behind(one))].sort((x, y) => y - x);
      const ratio = (a + 0.05) / (b + 0.05);
      if (ratio < 4.5) low.push([one.tagName, one.textContent.slice(0, 30), ratio]);
    }
    return [view.getComputedStyle(page.body).backgroundColor, low];
    """
