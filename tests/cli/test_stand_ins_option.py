"""`compress --stand-ins`: which kinds are tried, and that an earlier run's tables know."""

import json
from pathlib import Path

import pytest

import stopwatch
from shoal.cli.compress import _kinds
from shoal.errors import UsageError
from shoal.pipeline import MeasureConfig
from shoal.pipeline.candidate_table import DEFAULT_KINDS

pytestmark = pytest.mark.heavy

HERE = Path(__file__).parent.parent
NETWORK, DATA = f"{HERE}/tiny.py:network", f"{HERE}/tiny.py:data"


@pytest.fixture(autouse=True)
def _fake_clock(monkeypatch):
    stopwatch.install(monkeypatch)


def test_a_plus_adds_to_the_usual_ones():
    assert _kinds(None) == DEFAULT_KINDS
    assert _kinds("conv3, block") == ("conv3", "block")
    assert _kinds("+block,narrow") == (*DEFAULT_KINDS, "block", "narrow")


@pytest.mark.slow
def test_students_are_trained_and_another_goal_needs_no_training(run, tmp_path, monkeypatch):
    words = ("--stand-ins", "block,narrow", "--student-budget", 4, "--batch-size", 16, "--recover", "none", "--json")
    code, out, err = run("compress", NETWORK, DATA, "--macs", 0.6, *words, "--out", "o")
    assert code == 0, err
    assert any("students learned side by side" in note for note in json.loads(out)["notes"])
    plan = json.loads((tmp_path / "o" / "plan.json").read_text())
    kinds = {one["stand_in"]["kind"] for one in plan["actions"] if one["kind"] == "replace"}
    assert kinds <= {"block", "narrow"}
    monkeypatch.setattr("shoal.pipeline.candidate_table.train_students", lambda *_, **__: pytest.fail("trained again"))
    assert run("compress", "--from", "o", "--macs", 0.8, "--json", "--trust-code")[0] == 0
    code, _, err = run("compress", "--from", "o", "--macs", 0.8, "--stand-ins", "conv3", "--trust-code")
    assert (code, "--stand-ins is conv3, the tables were made with block,narrow" in err) == (2, True), err


def test_what_there_is_not_is_refused_before_a_folder_is_made(run, tmp_path):
    code, _, err = run("compress", NETWORK, DATA, "--macs", 0.5, "--stand-ins", "magic")
    assert (code, "no stand-in is called 'magic'" in err) == (2, True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="There are identity"):
        MeasureConfig(stand_ins=("magic",))
