import json

import pytest

from shoal.errors import FolderError
from shoal.files.jsonl import JsonlFile
from shoal.record import RecoveryEvaluation
from shoal.training.metrics import MetricsLog
from shoal.training_record import EpochRow


def log(folder):
    return MetricsLog(RecoveryEvaluation, "step", JsonlFile(folder / "recovery.jsonl") if folder is not None else None)


def look(step, **values):
    return RecoveryEvaluation(**{"step": step, "seconds": 1.0, "rate": 0.1, **values})


def lines(folder, name="recovery.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_rows_beyond_the_checkpoint_are_dropped_on_resuming(tmp_path):
    first = log(tmp_path)
    for step in (0, 5, 10):
        first.append(look(step, divergence=1 / (step + 1)), stopped=None)
    first.close()
    resumed = log(tmp_path)
    resumed.resume(5)
    resumed.append(look(9, seconds=2.0), stopped="budget")
    resumed.close()
    assert [line["step"] for line in lines(tmp_path)] == [0, 5, 9]
    assert [line["stopped"] for line in lines(tmp_path)] == [None, None, "budget"]
    assert [(row.step, row.seconds) for row in resumed.rows] == [(0, 1.0), (5, 1.0), (9, 2.0)]


def test_a_new_run_starts_with_an_empty_file(tmp_path):
    log(tmp_path).append(look(3))
    log(tmp_path).resume(-1)
    assert lines(tmp_path) == []


def test_without_a_folder_rows_are_held_in_memory(tmp_path):
    metrics = log(None)
    metrics.resume(-1)
    metrics.append(look(0, divergence=0.5), best=0.5)
    metrics.append(look(4, loss=0.3))
    assert metrics.rows == [look(0, divergence=0.5), look(4, loss=0.3)]
    assert list(tmp_path.iterdir()) == []


def epochs(folder):
    return MetricsLog(EpochRow, "epoch", JsonlFile(folder / "metrics.jsonl"))


def epoch(number):
    return EpochRow(
        epoch=number, rate=0.1, decay=1e-4, epsilon=1.0, loss=0.5, train_error=0.1, alive=3, closed=[], seconds=1.0
    )


def test_a_line_cut_short_beyond_the_checkpoint_does_not_matter(tmp_path):
    epochs(tmp_path).append(epoch(1))
    with (tmp_path / "metrics.jsonl").open("a") as out:
        out.write('{"epoch": 2, "ra')
    resumed = epochs(tmp_path)
    resumed.resume(1, count=1)
    assert resumed.rows == [epoch(1)]


@pytest.mark.parametrize("content", ["nonsense\n", ""])
def test_missing_rows_are_refused(tmp_path, content):
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(FolderError, match=r"cannot be read.*it holds 0 valid lines, the checkpoint includes 1"):
        epochs(tmp_path).resume(1, count=1)


def test_a_missing_file_is_refused_where_there_have_to_be_rows(tmp_path):
    with pytest.raises(FolderError, match="cannot be read"):
        epochs(tmp_path).resume(2, count=2)


def test_rows_of_another_kind_are_refused(tmp_path):
    JsonlFile(tmp_path / "metrics.jsonl").append({"epoch": 1, "rate": "high"})
    with pytest.raises(FolderError, match="cannot be read"):
        epochs(tmp_path).resume(1, count=1)
    JsonlFile(tmp_path / "metrics.jsonl").append({"epoch": "first"})
    with pytest.raises(FolderError, match="cannot be read"):
        epochs(tmp_path).resume(1, count=1)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FolderError, match="cannot write"):
        epochs(tmp_path / "missing").append(epoch(1))
