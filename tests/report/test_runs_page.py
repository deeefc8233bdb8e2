"""Several runs on one page: their figures, their front, links to their own pages."""

import json
import re
from dataclasses import replace

import pytest
from handmade import make_record

from shoal.errors import UsageError
from shoal.record import MetricComparison, OutputsRead
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
    assert "no front" not in page


def compared(record, **changes):
    return record.model_copy(update={"comparison": record.comparison.model_copy(update=changes)})


def on_another_machine(record):
    return record.model_copy(update={"machine": record.machine.model_copy(update={"device": "another"})})


def at_another_batch(record):
    one, other = record.original, record.compressed
    latencies = [[time.model_copy(update={"batch": 3}) for time in of.latency] for of in (one, other)]
    before, after = (
        of.model_copy(update={"latency": times}) for of, times in zip((one, other), latencies, strict=True)
    )
    return record.model_copy(update={"original": before, "compressed": after})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda record: record.model_copy(update={"model": "another"}), "The runs are of several networks"),
        (lambda record: record.model_copy(update={"data": "another"}), "The runs are on several data sets"),
        (on_another_machine, "The runs were timed on several devices"),
        (at_another_batch, "The runs were timed at several batch sizes"),
        (lambda record: compared(record, top1_drop=None, top1_drop_interval=None), "The losses are in several units"),
    ],
)
def test_what_does_not_compare_has_no_front(change, problem):
    other = NamedRun("b", change(make_record()), "b/report.html")
    page = render_runs([named("a"), other])
    assert f"{problem}: there is no front of all of them." in page
    assert "on the front" not in page
    assert "Loss against speed" not in page
    assert 'href="b/report.html"' in page
    assert 'href="b/report.html"' in render_runs([other])
    assert "there is no front" not in render_runs([other])


def test_divergences_of_two_tasks_have_no_front():
    run = named()
    without = compared(run.record, top1_drop=None, top1_drop_interval=None)
    kinds = [OutputsRead(outputs=[], damage=damage) for damage in ("squared error", "one minus the cosine")]
    first, second = (replace(run, record=without.model_copy(update={"outputs": kind})) for kind in kinds)
    assert "The divergences are of several kinds" in render_runs([first, second])
    assert "The divergences are of several kinds" not in render_runs([first, first])


def test_the_loss_is_that_of_the_metric_of_the_task():
    """It was the divergence under the heading of the metric."""
    figures = {"name": "psnr", "label": "PSNR", "unit": "dB", "better": "higher", "n": 9, "original": 30.0}
    psnr = MetricComparison.model_validate(
        {**figures, "against": "labels", "compressed": 29.58, "drop": 0.42, "drop_interval": (0.31, 0.55)}
        | {"compressed_interval": (29, 30)}
    )
    run = named()
    first = replace(run, record=compared(run.record, metrics=[psnr]))
    assert "0.310 to 0.550 dB of PSNR" in render_runs([first])
    share = psnr.model_copy(update={"unit": "%", "label": "mIoU", "against": "original"})
    second = replace(run, record=compared(run.record, metrics=[share]))
    assert "31.0 to 55.0 points of mIoU against the original&#39;s output" in render_runs([second])
    assert "The losses are in several units" in render_runs([first, second])


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


@pytest.fixture
def report(tmp_path, monkeypatch, capsys):
    """`shoal report` beside the finished runs `a` and `b`: (exit code, stdout, stderr)."""
    import sys

    from shoal.cli import main

    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "javascript:alert(1)", "50% #1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json").write_text(make_record().model_dump_json())
        (tmp_path / name / "report.html").write_text("the page of a run")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["shoal", "report", *words])
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        return left.value.code, captured.out, captured.err

    return run


def test_a_folder_of_any_name_is_linked_as_a_file(report, tmp_path):
    assert report("javascript:alert(1)", "50% #1", "--out", "page.html")[0] == 0
    pages = [run["page"] for run in embedded((tmp_path / "page.html").read_text())["runs"]]
    assert pages == ["javascript%3Aalert%281%29/report.html", "50%25%20%231/report.html"]


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("a/record.json", "belongs to the run in 'a'"),
        ("a/report.html", "belongs to the run in 'a'"),
        ("b/../a/plan.json", "belongs to the run in 'b/../a'"),
        ("a", "it is a folder"),
        ("", "it is a folder"),
        ("no/such/page.html", "there is no folder 'no/such'"),
    ],
)
def test_a_page_takes_the_place_of_nothing_else(out, reason, report, tmp_path):
    before = {path: path.read_text() for path in tmp_path.rglob("*.*") if path.is_file()}
    code, said, problem = report("a", "b", "--out", out)
    assert (code, said) == (2, "")
    assert reason in problem
    assert {path: path.read_text() for path in tmp_path.rglob("*.*") if path.is_file()} == before


def test_a_page_may_lie_in_a_folder_and_be_written_again(report):
    assert report("a", "--out", "a/runs.html")[:2] == (0, "1 run: a/runs.html\n")
    assert report("a", "b", "--out", "a/runs.html")[:2] == (0, "2 runs: a/runs.html\n")


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("record.json", "{", "record.json' is damaged"),
        ("record.json", "[]", "record.json' is damaged"),
        ("record.json", "{}", "Field required"),
        ("run.json", '{"command": "train"}', "is of `shoal train`"),
    ],
)
def test_no_page_is_written_where_one_folder_cannot_be_read(name, text, reason, report, tmp_path):
    (tmp_path / "b" / name).write_text(text)
    code, _, problem = report("a", "b", "--out", "page.html")
    assert code == 2
    assert reason in problem
    assert "/b" in problem
    assert not (tmp_path / "page.html").exists()
