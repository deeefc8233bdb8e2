import json
import re

from trained import make_beside, make_rows, make_training

from shoal.report.train_html import render_training


def test_the_page_needs_nothing_from_outside():
    page = render_training(make_training())
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page)
    assert not re.findall(r"url\(", page)


def test_the_page_holds_the_figures_the_table_and_the_proof():
    page = render_training(make_training())
    assert page.count("<svg") >= 6
    for said in ("2 of 6 blocks lost in training", "Identical by construction", "stages.1.2", "33.3\u00a0% less"):
        assert said in page.replace("33.3 % less", "33.3\u00a0% less"), said
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for link in re.findall(r'href="#([^"]+)"', page):
        assert link in ids


def test_what_comes_from_outside_is_escaped():
    page = render_training(make_training(model="<script>alert(1)</script>"))
    assert "<script>alert" not in page
    assert "&lt;their&gt; weights" in page


def test_the_whole_record_is_inside():
    record = make_training()
    inside = re.search(r'id="record">(.*?)</script>', render_training(record), re.S).group(1)
    assert json.loads(inside) == json.loads(record.model_dump_json())


def test_a_plain_run_has_no_gates_to_show():
    bare = [row.model_copy(update={"largest": {}, "lost": False, "taken_out": []}) for row in make_rows()]
    page = render_training(make_training(gated=0, lost=[], rows=bare, warnings=[]))
    assert "Responses against epsilon" not in page
    assert "trained without gates" in page


def test_runs_beside_it_have_a_table():
    page = render_training(make_training(beside=[make_beside("large-epsilon", 20.0, 6)]))
    assert 'id="beside-table"' in page
    assert "large-epsilon" in page
    assert "Beside it" not in render_training(make_training())
