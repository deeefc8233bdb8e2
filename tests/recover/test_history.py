import json

from shoal.recover.history import METRICS, History


def lines(folder):
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def test_a_line_a_look_and_later_ones_are_dropped_on_resuming(tmp_path):
    first = History(tmp_path)
    for step in (0, 5, 10):
        first.add({"step": step, "divergence": 1 / (step + 1), "stopped": None})
    first.close()
    again = History(tmp_path, steps=5)
    again.add({"step": 9, "divergence": None})
    again.close()
    assert [line["step"] for line in lines(tmp_path)] == [0, 5, 9]


def test_a_new_run_begins_anew(tmp_path):
    History(tmp_path).add({"step": 3})
    History(tmp_path, steps=0)
    assert lines(tmp_path) == []


def test_nothing_is_kept_without_a_folder(tmp_path):
    History(None).add({"step": 1})
    assert list(tmp_path.iterdir()) == []
