"""`compress --from DIR`: another goal from the tables of an earlier run."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import shoal
import stopwatch
from shoal.errors import UsageError
from shoal.pipeline.cache import MeasurementCache
from shoal.pipeline.plan_builder import PlanBuilder

pytestmark = pytest.mark.heavy

HERE = Path(__file__).parent.parent
NETWORK, DATA, PLAIN = (f"{HERE}/tiny.py:{name}" for name in ("network", "data", "plain"))
FEW = ("--images", 40, "--batch-size", 16, "--recover", "none")


@pytest.fixture(autouse=True)
def _quick_tables(monkeypatch):
    """By a fake clock, and without the refit of neighbours, which nothing here is about."""
    stopwatch.install(monkeypatch)
    monkeypatch.setattr("shoal.pipeline.planner.CandidateRefitConfig", lambda: None)


@pytest.fixture
def counted(monkeypatch):
    """Names of what is added to tables."""
    added = []
    append = MeasurementCache.append

    def counting(self, line):
        added.append(line["kind"])
        append(self, line)

    monkeypatch.setattr(MeasurementCache, "append", counting)
    return added


def test_another_goal_measures_nothing_again(run, tmp_path, counted):
    code, out, _ = run("compress", NETWORK, DATA, "--latency", "0.8", *FEW, "--out", "first", "--json")
    first = json.loads(out)
    assert code == 0
    assert first["planning"]["latency_source"] == "measured"
    assert counted
    counted.clear()
    code, out, _ = run("compress", "--trust-code", "--from", "first", "--latency", "0.6", "--out", "second", "--json")
    second = json.loads(out)
    assert (code, counted) == (0, [])
    assert second["goal"] == {"latency": "0.6"}
    assert second["planning"]["latency_measured_ms"] <= 0.6 * 1.01 * second["planning"]["original_ms"]
    assert second["compressed"]["blocks"] < 6
    assert len(second["removed"]) + len(second["replaced"]) > 0
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(
            shoal.load(tmp_path / "second", trust_code=True)(x), shoal.load(tmp_path / "second", trust_code=True)(x)
        )
    # The tables of the first are those of whoever starts from the second.
    code, out, _ = run("compress", "--trust-code", "--from", "second", "--pick", 2, "--out", "third", "--json")
    third = json.loads(out)
    assert (code, counted) == (0, [])
    assert (third["goal"], third["planning"]["picked"]) == ({"pick": 2}, 2)
    code, _, err = run("compress", "--trust-code", "--from", "first", "--pick", 999, "--out", "fourth")
    assert code == 2
    assert "there is no plan 999 on the front" in err
    assert not (tmp_path / "fourth").exists()


@pytest.mark.slow
def test_ctrl_c_leaves_a_folder_that_goes_on_and_can_be_started_from(run, tmp_path, monkeypatch, counted):
    words = ("compress", NETWORK, DATA, "--macs", "0.8", *FEW, "--out", "o")
    kept = MeasurementCache.add_damages

    def interrupted(self, *args, **kwargs):
        kept(self, *args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MeasurementCache, "add_damages", interrupted)
        code, _, err = run(*words)
    assert code == 130
    assert "The same command with --out o resumes this run." in err
    assert not (tmp_path / "o" / "record.json").exists()
    shutil.copytree(tmp_path / "o", tmp_path / "copy")
    before = counted.copy()
    assert "fitted" in before
    counted.clear()
    code, out, _ = run(*words)
    assert code == 0
    assert "resuming the run in o" in out
    assert set(counted) == {"damage"}
    counted.clear()
    code, out, _ = run("compress", "--trust-code", "--from", "copy", "--macs", "0.8", "--out", "p", "--json")
    assert code == 0
    assert set(counted) == {"damage"}
    whole, other = (json.loads((tmp_path / name / "record.json").read_text()) for name in ("o", "p"))
    assert whole["planning"] == other["planning"]


def test_a_dry_run_solves_by_the_tables_and_builds_nothing(run, tmp_path, counted, monkeypatch):
    assert run("compress", NETWORK, DATA, "--macs", "0.8", *FEW, "--out", "first")[0] == 0
    counted.clear()
    monkeypatch.setattr(PlanBuilder, "build", lambda *args: pytest.fail("a plan was built"))
    code, out, _ = run("compress", "--trust-code", "--from", "first", "--macs", "0.5", "--dry-run", "--json")
    document = json.loads(out)
    assert (code, counted) == (0, [])
    whole = json.loads((tmp_path / "first" / "record.json").read_text())["original"]["cost"]["macs"]
    assert document["plan"]["macs"] <= 0.5 * whole
    assert document["plan"]["replaced"] or document["plan"]["removed"]
    code, out, _ = run("compress", "--trust-code", "--from", "first", "--pick", 2, "--dry-run")
    assert code == 0
    assert "% of the original's latency" in out
    assert len(out.splitlines()) > len(document["front"])
    code, out, _ = run("compress", "--trust-code", "--from", "first", "--max-drop", 1, "--replace", "--dry-run")
    assert code == 0
    assert "only measuring tells" in out
    assert [one.name for one in tmp_path.iterdir()] == ["first"]


def test_what_needs_other_tables_is_refused(run):
    run("compress", NETWORK, DATA, "--macs", "0.8", *FEW, "--out", "o")
    for words in (("--seed", 5), ("--batch-size", 8), ("--images", 20), ("--channels-last",)):
        code, _, err = run("compress", "--trust-code", "--from", "o", "--macs", "0.7", *words, "--out", "p")
        assert code == 2, words
        assert f"{words[0]} is" in err
        assert "the tables were made with" in err
        assert "leave out --from" in err


@pytest.mark.slow
def test_weights_that_have_moved_are_given_again(run, tmp_path):
    sys.path.insert(0, str(HERE))
    import tiny

    torch.save(tiny.network().state_dict(), tmp_path / "w.pt")
    code, _, _ = run("compress", NETWORK, DATA, "--macs", "0.8", *FEW, "--weights", "w.pt", "--out", "o")
    assert code == 0
    (tmp_path / "w.pt").rename(tmp_path / "moved.pt")
    code, _, err = run("compress", "--trust-code", "--from", "o", "--macs", "0.7", "--out", "p")
    assert code == 2
    assert "w.pt" in err
    code, _, _ = run("compress", "--trust-code", "--from", "o", "--macs", "0.7", "--weights", "moved.pt", "--out", "p")
    assert code == 0
    other = tiny.network()
    with torch.no_grad():
        other.head.bias.add_(1)
    torch.save(other.state_dict(), tmp_path / "other.pt")
    code, _, err = run(
        "compress", "--trust-code", "--from", "o", "--macs", "0.6", "--weights", "other.pt", "--out", "q"
    )
    assert code == 2
    assert "were made for something else: network was" in err


def test_the_blocks_that_must_stay_are_those_of_the_tables(run):
    run("compress", NETWORK, DATA, "--depth", 3, "--exclude", "blocks.0,blocks.1", *FEW, "--out", "o")
    code, out, _ = run("compress", "--trust-code", "--from", "o", "--depth", 2, "--out", "p", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["goal"] == {"depth": 2, "exclude": ["blocks.0", "blocks.1"]}
    touched = [path for span in document["replaced"] for path in span.split(" + ")] + document["removed"]
    assert set(touched) == {"blocks.2", "blocks.3", "blocks.4", "blocks.5"}
    code, _, err = run("compress", "--trust-code", "--from", "o", "--depth", 2, "--exclude", "blocks.5", "--out", "q")
    assert code == 2
    assert "--include and --exclude belong to the tables" in err


def _removals(folder):
    network = {"model": "digits-resnet", "data": "digits", "device": "cpu", "channels_last": False}
    arguments = {**network, "seed": 0, "batch_size": 128, "images": 512, "goal": {"remove": 1}}
    (folder / "run.json").write_text(json.dumps({"command": "compress", "arguments": arguments}))


def _scan(folder):
    (folder / "run.json").write_text(json.dumps({"command": "scan", "arguments": {}}))


def _list(folder):
    (folder / "run.json").write_text("[]")


def _nothing(folder):
    pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_removals, "holds no tables: its run made no plan"),
        (_scan, "is no run of `shoal compress`"),
        (_list, "is no run of `shoal compress`"),
        (_nothing, "is no output folder of Shoal"),
    ],
)
def test_a_folder_without_tables_is_refused(run, tmp_path, make, message):
    (tmp_path / "o").mkdir()
    make(tmp_path / "o")
    code, _, err = run("compress", "--trust-code", "--from", "o", "--macs", "0.5", "--out", "p")
    assert code == 2
    assert message in err
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("goal", [("--remove", 1), ("--exact",), ("--blocks", "blocks.0"), ("--max-drop", 1), ()])
def test_a_goal_that_needs_no_plan_is_refused(run, goal):
    code, out, _ = run("compress", "--trust-code", "--from", "o", *goal, "--json")
    error = json.loads(out)["error"]
    assert code == 2
    assert "this goal needs none" in error["message"]
    assert "--max-drop with --replace" in error["hint"]


@pytest.fixture
def asked(monkeypatch):
    """What `compress` was asked to recover, each time; it does not begin."""
    found = []

    def compress(*_, recovery, **__):
        found.append(recovery and (str(recovery.budget), recovery.required))
        raise UsageError("enough", "That was all.")

    monkeypatch.setattr("shoal.cli.compress.compress", compress)
    return found


def test_a_plan_recovers_by_default(run, asked):
    none = ("--recover", "none")
    for words in (("--macs", 0.8), ("--remove", 1), ("--macs", 0.8, "--recover", 40), ("--macs", 0.8, *none)):
        assert run("compress", NETWORK, DATA, *words, "--images", 40)[0] == 2
    assert asked == [("300 seconds", False), None, ("40 steps", True), None]


def test_another_goal_recovers_as_the_run_before(run, request):
    run("compress", NETWORK, DATA, "--macs", "0.8", *FEW, "--out", "o")
    asked = request.getfixturevalue("asked")
    for words in ((), ("--recover", 40)):
        assert run("compress", "--trust-code", "--from", "o", "--macs", "0.7", *words)[0] == 2
    assert asked == [None, ("40 steps", True)]


def test_budget_extra_data_and_who_asked_are_inherited_each_for_itself(run, tmp_path, monkeypatch):
    run("compress", NETWORK, DATA, "--macs", "0.8", *FEW, "--out", "o")
    found, tried = [], []

    def compress(*_, recovery, **__):
        found.append(recovery and (str(recovery.budget), recovery.required, recovery.unlabelled is not None))
        tried.append(recovery and recovery.race)
        raise UsageError("enough", "That was all.")

    monkeypatch.setattr("shoal.cli.compress.compress", compress)
    claim = json.loads((tmp_path / "o" / "run.json").read_text())

    def again(before, *words):
        claim["arguments"].update(before)
        (tmp_path / "o" / "run.json").write_text(json.dumps(claim))
        found.clear()
        code, _, err = run("compress", "--trust-code", "--from", "o", "--macs", "0.7", *words)
        assert code == 2
        return found[0] if found else err

    default = {"recover": "9", "recovery_asked": False, "unlabelled": None}
    assert again(default) == ("9 steps", False, False)
    assert again(default, "--unlabelled", DATA) == ("9 steps", True, True)
    assert again(default, "--recover", 40) == ("40 steps", True, False)
    extra = {"recover": "9", "recovery_asked": True, "unlabelled": DATA}
    assert again(extra) == ("9 steps", True, True)
    assert again(extra, "--recover", 40) == ("40 steps", True, True)
    assert again(extra, "--recover", "none") is None
    assert again(extra | {"try_plans": 3}) == ("9 steps", True, True)
    assert tried[-1] == 3
    assert again(extra | {"try_plans": 0}) == ("9 steps", True, True)
    assert tried[-1] == 16
    assert again(extra, "--try-plans", 2) == ("9 steps", True, True)
    assert tried[-1] == 2
    assert again(extra | {"race": 4}) == ("9 steps", True, True)
    assert tried[-1] == 4
    assert again(extra, "--race", 2) == ("9 steps", True, True)
    assert tried[-1] == 2
    assert again(extra, "--recover", "none") is None
    none = {"recover": "none", "recovery_asked": True, "unlabelled": None}
    assert "--unlabelled is for recovery, and there is none" in again(none, "--unlabelled", DATA)


def test_what_the_original_writes_is_inherited_until_other_data_takes_its_place(run, tmp_path, monkeypatch):
    run("compress", NETWORK, DATA, "--macs", "0.8", *FEW, "--out", "o")
    seen = []

    def compress(*_, recovery, **__):
        seen.append(recovery and (recovery.self_data, recovery.unlabelled is not None, recovery.required))
        raise UsageError("enough", "That was all.")

    monkeypatch.setattr("shoal.cli.compress.compress", compress)
    claim = json.loads((tmp_path / "o" / "run.json").read_text())

    def again(before, *words):
        claim["arguments"] = {**claim["arguments"], "self_data": 0, **before}
        (tmp_path / "o" / "run.json").write_text(json.dumps(claim))
        seen.clear()
        code, _, err = run("compress", "--trust-code", "--from", "o", "--macs", "0.7", *words)
        assert code == 2
        return seen[0] if seen else err

    written = {"recover": "9", "recovery_asked": True, "unlabelled": None, "self_data": 6}
    assert again(written) == (6, False, True)
    assert again(written, "--self-data", 4) == (4, False, True)
    assert again(written, "--self-data", 0) == (0, False, True)
    assert again(written, "--unlabelled", DATA) == (0, True, True)
    assert again(written, "--recover", "none") is None
    assert "both say" in again(written, "--unlabelled", DATA, "--self-data", 4)
    read = {"recover": "9", "recovery_asked": False, "unlabelled": DATA}
    assert again(read) == (0, True, False)
    assert again(read, "--self-data", 4) == (4, False, True)
    none = {"recover": "none", "recovery_asked": True, "unlabelled": None}
    assert "--self-data is for recovery, and there is none" in again(none, "--self-data", 4)
