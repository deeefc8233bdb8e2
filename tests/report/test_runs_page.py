"""Several runs on one page: their figures, their front, links to their own pages."""

import json
import re

import pytest
from handmade import make_record

from shoal.errors import UsageError
from shoal.report import NamedRun, render_runs
from shoal.report.runs import RunSummary, _undominated


def named(name="a", **changes):
    return NamedRun(name, make_record(**changes), f"{name}/report.html")


def embedded(page):
    return json.loads(re.search(r'id="record">(.*?)</script>', page, re.DOTALL)[1])


def test_every_run_has_a_row_and_a_link():
    page = render_runs([named("first"), named("second <b>")])
    assert "2 runs side by side" in page
    assert 'href="first/report.html"' in page
    assert "second <b>" not in page
    runs = embedded(page)["runs"]
    assert [run["name"] for run in runs] == ["first", "second <b>"]
    record = make_record()
    assert runs[0]["loss"] == pytest.approx(100 * record.comparison.top1_drop)
    assert runs[0]["blocks"] == record.compressed.blocks
    assert runs[0]["macs_share"] == pytest.approx(record.compressed.cost.macs / record.original.cost.macs)
    assert runs[0]["speedup"] > 1
    assert "do not compare" not in page


def test_runs_of_several_networks_are_said_not_to_compare():
    page = render_runs([named("a"), named("b", model="another")])
    assert "The runs are of several networks: their figures do not compare." in page


def test_a_run_without_a_latency_is_in_the_table_alone(bare):
    page = render_runs([NamedRun("bare", bare, "bare/report.html")])
    assert "not measured" in page
    assert "The front</h2>" not in page


def test_no_run_is_refused():
    with pytest.raises(UsageError, match="no run"):
        render_runs([])


def summary(name, loss, speedup):
    return RunSummary(
        name=name, page="", model="m", data="d", blocks=1, blocks_before=2, loss=loss, loss_interval=(loss, loss),
        unit="points", speedup=speedup, batch=1, macs_share=1, params_share=1, device="cpu",
    )  # fmt: skip


def test_the_front_is_what_no_other_run_beats():
    runs = [
        summary("a", 0.0, 1.5),
        summary("b", 1.0, 1.4),
        summary("c", 2.0, 3.0),
        summary("d", 2.0, 3.0),
        summary("e", -1, None),
    ]
    assert _undominated(runs) == ["a", "c", "d"]


def test_the_command_writes_the_page(tmp_path, monkeypatch, capsys):
    import sys

    from shoal.cli import main

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json").write_text(make_record().model_dump_json())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["shoal", "report", "a", "b", "a/", "--out", "page.html", "--json"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    assert json.loads(capsys.readouterr().out) == {"out": "page.html", "runs": ["a", "b"]}
    assert [run["page"] for run in embedded((tmp_path / "page.html").read_text())["runs"]] == [
        "a/report.html",
        "b/report.html",
    ]
