"""Metrics of training go to the trackers that are asked for, through accelerate."""

from pathlib import Path

import pytest
from accelerate import tracking as accelerate_tracking
from pydantic import BaseModel

from shoal.errors import UsageError
from shoal.files.jsonl import JsonlFile
from shoal.training.metrics import MetricsLog
from shoal.training.tracking import tracking


class Row(BaseModel):
    step: int
    loss: float
    name: str = "x"
    done: bool = True


class Fake(accelerate_tracking.GeneralTracker):
    """Remembers everything."""

    name, requires_logging_directory, tracker = "fake", True, None
    seen: list = []  # noqa: RUF012 - shared on purpose

    def __init__(self, project, folder):
        super().__init__()
        self.seen.append(("begun", project, Path(folder).name))

    def store_init_configuration(self, values):
        self.seen.append(("configuration", values))

    def log(self, values, step=None, **_):
        self.seen.append((step, values))

    def finish(self):
        self.seen.append("finished")


@pytest.fixture
def seen(monkeypatch):
    monkeypatch.setitem(accelerate_tracking.LOGGER_TYPE_TO_CLASS, "fake", Fake)
    Fake.seen = []
    return Fake.seen


def test_numbers_of_each_row_are_sent(seen, tmp_path):
    with tracking(["fake", "fake"]):
        log = MetricsLog(Row, "step", JsonlFile(tmp_path / "m.jsonl"))
        log.append(Row(step=3, loss=0.5), rate=0.1, note="text")
        log.close()
    assert seen == [
        ("begun", "shoal", tmp_path.name),
        ("configuration", {"folder": tmp_path.name}),
        (3, {"loss": 0.5, "rate": 0.1}),
        "finished",
    ]


@pytest.mark.parametrize("method", ["log", "finish"])
def test_a_tracker_that_fails_later_does_not_end_the_training(method, seen, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("the server is gone\nmore")

    class Other(Fake):
        name = "other"

    monkeypatch.setitem(accelerate_tracking.LOGGER_TYPE_TO_CLASS, "other", Other)
    monkeypatch.setattr(Other, method, fail)
    file = JsonlFile(tmp_path / "m.jsonl")
    with tracking(["other", "fake"]):
        log = MetricsLog(Row, "step", file)
        if method == "finish":
            log.append(Row(step=1, loss=0.5))
        with pytest.warns(UserWarning, match="'other' gets nothing more: the server is gone$"):
            log.close() if method == "finish" else log.append(Row(step=1, loss=0.5))
        if method == "log":
            log.append(Row(step=2, loss=0.25))
            log.close()
    assert [row["step"] for row in file.read()] == ([1] if method == "finish" else [1, 2])
    assert seen[-1] == "finished"
    assert (1, {"loss": 0.5}) in seen


def test_a_tracker_that_does_not_start_is_wrong_use(seen, tmp_path, monkeypatch):
    def fail(self):
        raise RuntimeError("no key; call login() first")

    class Other(Fake):
        start = fail

    monkeypatch.setitem(accelerate_tracking.LOGGER_TYPE_TO_CLASS, "other", Other)
    with tracking(["fake", "other"]), pytest.raises(UsageError, match=r"'other' does not start: no key"):
        MetricsLog(Row, "step", JsonlFile(tmp_path / "m.jsonl"))
    assert seen[-1] == "finished"


def test_without_a_folder_they_are_sent_too(seen):
    with tracking(["fake"]):
        MetricsLog(Row, "step", None).append(Row(step=1, loss=0.25))
    assert (1, {"loss": 0.25}) in seen


def test_outside_of_the_context_nothing_is_sent(seen):
    with tracking(["fake"]):
        pass
    MetricsLog(Row, "step", None).append(Row(step=1, loss=0.25))
    assert seen == []


@pytest.mark.parametrize(("name", "words"), [("wandbb", "there is no tracker 'wandbb'"), ("aim", "not installed")])
def test_a_tracker_that_is_not_there_is_refused(name, words, monkeypatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(UsageError, match=words) as caught, tracking([name]):
        pass
    assert "wandb" in caught.value.hint or caught.value.hint == "pip install aim"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb", "trackio"])
def test_trackers_that_are_installed(name, tmp_path, monkeypatch):
    """`make test-integrations` installs them; none of them reaches for the network here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip(name)
    with tracking([name]):
        for run in ("first", "second"):
            (tmp_path / run).mkdir()
            log = MetricsLog(Row, "step", JsonlFile(tmp_path / run / "m.jsonl"))
            for step in range(3):
                log.append(Row(step=step, loss=0.5), share_left=0.25)
            log.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".jsonl"]
    assert any(b"share_left" in path.read_bytes() for path in files), files
