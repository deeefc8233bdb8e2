import json

import pytest

from shoal.epsilon.metrics import METRICS, MetricsFile
from shoal.errors import FolderError
from shoal.training import EpochRow


def row(epoch):
    return EpochRow(
        epoch=epoch, rate=0.1, decay=1e-4, epsilon=1.0, loss=0.5, train_error=0.1, alive=3, closed=[], seconds=1.0
    )


def test_one_line_an_epoch_that_json_reads(tmp_path):
    file = MetricsFile(tmp_path)
    file.append(row(1))
    file.append(row(2))
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]


def test_a_resumed_run_drops_what_the_checkpoint_does_not_know(tmp_path):
    file = MetricsFile(tmp_path)
    for epoch in (1, 2, 3):
        file.append(row(epoch))
    assert [one.epoch for one in MetricsFile(tmp_path).restart(2)] == [1, 2]
    assert len((tmp_path / METRICS).read_text().splitlines()) == 2


def test_a_line_cut_short_beyond_the_checkpoint_does_not_matter(tmp_path):
    file = MetricsFile(tmp_path)
    file.append(row(1))
    with (tmp_path / METRICS).open("a") as out:
        out.write('{"epoch": 2, "ra')
    assert len(MetricsFile(tmp_path).restart(1)) == 1
    (tmp_path / METRICS).write_text("nonsense\n")
    with pytest.raises(FolderError, match="cannot be read"):
        MetricsFile(tmp_path).restart(1)


def test_a_folder_that_is_gone_is_said(tmp_path):
    file = MetricsFile(tmp_path / "gone")
    with pytest.raises(FolderError, match="cannot write"):
        file.append(row(1))


def test_without_a_folder_nothing_is_kept():
    file = MetricsFile(None)
    file.append(row(1))
    assert file.restart(3) == []
