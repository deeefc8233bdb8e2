"""axe-core finds nothing on the reports that keeps people from using them; `make test-axe` fetches it."""

import html
import json
import os
import re
from pathlib import Path

import pytest
from browsing import DARK, browse
from handmade import bare_record, make_record
from planned import planned_record
from recovered import recovered_record
from scanned import make_scan

from shoal.report import NamedRun, render, render_runs, render_scan

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not Path(os.environ.get("AXE", "")).is_file(), reason="`make test-axe` fetches axe-core"),
]
PAGES = {
    "compress": lambda: render(make_record()),
    "bare": lambda: render(bare_record()),
    "plan": lambda: render(planned_record()),
    "recovery": lambda: render(recovered_record()),
    "scan": lambda: render_scan(make_scan()),
    "runs": lambda: render_runs([NamedRun("a", make_record(), "a/report.html"), NamedRun("b", planned_record(), "b")]),
}


@pytest.mark.parametrize("flags", [(), (DARK,)], ids=["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_no_violations(chromium: str, tmp_path: Path, name: str, flags: tuple[str, ...]) -> None:
    page = tmp_path / "report.html"
    axe = Path(os.environ["AXE"]).read_text(encoding="utf-8")
    added = f"""<script>{axe}</script><script>window.addEventListener("load", async () => {{
      const found = await axe.run(document, {{ resultTypes: ["violations"] }});
      const pre = document.createElement("pre");
      pre.id = "found";
      pre.textContent = JSON.stringify(found.violations.map((one) => [one.id, one.nodes.map((node) => node.html)]));
      document.body.append(pre);
    }});</script></body>"""
    page.write_text(PAGES[name]().replace("</body>", added), encoding="utf-8")
    dom, console = browse(chromium, page, tmp_path, "--dump-dom", "--virtual-time-budget=20000", *flags)
    assert console == []
    found = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert found
    assert json.loads(html.unescape(found[1])) == []
