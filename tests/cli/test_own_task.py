"""`--task FILE.py:FUNCTION`: a task of the user's own on the command line."""

import json
from pathlib import Path

import pytest

import stopwatch

TINY = Path(__file__).parent.parent / "tiny.py"
NETWORK, DATA = f"{TINY}:network", f"{TINY}:data"
FEW = ("--limit", 40, "--batch-size", 20)
OWN = """
from pathlib import Path

from shoal.measure.output_reading import Expectation
from shoal.tasks import Metric, Task

Path(__file__).with_name("ran").open("a").write("x")


def rows(output, reference, batch):
    return (output.argmax(dim=1) == reference.value).double().tolist()


def share(rows):
    return sum(rows) / len(rows)


def broken(output, reference, batch):
    raise OSError("no horizon")


def task(rows=rows):
    level = Metric("level", "Level", rows, share, "%", against="labels")
    return Task("horizon", (level,), Expectation("horizon", "values"))


def failing():
    return task(broken)


def number():
    return 3


def raising():
    raise RuntimeError("no tasks today")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    stopwatch.install(monkeypatch)
    monkeypatch.setattr("shoal.pipeline.planner.CandidateRefitConfig", lambda: None)  # which nothing here is about
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


def test_scan_and_distill_take_it_too(run, own):
    code, _, err = run("scan", NETWORK, DATA, *FEW, "--fast", "--task", "own.py:task", "--out", "s")
    assert code == 0, err
    assert json.loads((own / "s" / "record.json").read_text())["outputs"]["task"] == "horizon"
    words = ("distill", f"{TINY}:noisy", DATA, "--teacher", NETWORK, "--budget", "1", *FEW, "--out", "d")
    code, _, err = run(*words, "--task", "own.py:task")
    assert code in (0, 1), err
    assert "level" in (own / "d" / "record.json").read_text()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("own.py:number", "returned a int, expected a shoal.tasks.Task"),
        ("own.py:raising", "no tasks today"),
        ("own.py:tasks", "defines no 'tasks'"),
        ("own.py", "does not name a function"),
        ("other.py:task", "there is no file 'other.py'"),
        ("own.py:failing", "no horizon"),
        ("horizon", "there is no task 'horizon'"),
    ],
)
def test_what_is_no_task_is_refused_before_anything_is_written(run, own, spec, message):
    words = ("compress", NETWORK, DATA, "--remove", "1", *FEW, "--recover", "none", "--out", "o", "--task", spec)
    code, _, err = run(*words)
    assert code == 2
    assert message in err
    assert not (own / "o" / "record.json").exists()


def test_a_configuration_that_names_it_has_to_be_trusted(run, own):
    (own / "config.yaml").write_text("task: own.py:task\n")
    words = ("compress", NETWORK, DATA, "--remove", "1", *FEW, "--images", 20, "--recover", "none", "--out", "o")
    code, _, err = run(*words, "--config", "config.yaml")
    assert code == 2
    assert "names 'own.py:task'" in err
    assert not (own / "ran").exists()


@pytest.mark.slow
def test_its_metric_is_reported_and_a_run_that_is_continued_has_it_too(run, own):
    small = ("--limit", 16, "--batch-size", 8)
    words = ("compress", NETWORK, DATA, "--macs", "0.9", *small, "--images", 8, "--recover", "none", "--out", "o")
    code, _, err = run(*words, "--stand-ins", "scale", "--task", "own.py:task")
    assert code in (0, 1), err
    assert "running own.py:task for the task" in err
    record, claim = (json.loads((own / "o" / name).read_text()) for name in ("record.json", "run.json"))
    assert (record["outputs"]["task"], record["comparison"]["metrics"][0]["name"]) == ("horizon", "level")
    assert claim["arguments"]["task"] == "own.py:task"
    assert (own / "ran").read_text() == "x"
    (own / "ran").unlink()
    continued = ("compress", NETWORK, DATA, "--from", "o", "--macs", "0.8", "--recover", "none", "--dry-run")
    code, _, err = run(*continued)
    assert (code, (own / "ran").exists()) == (2, False)
    assert "a folder names 'own.py:task'" in err
    code, _, err = run(*continued, "--task", "own.py:task")
    assert code == 0, err
