import json

from shoal.record import RecoveryEvaluation
from shoal.recover.training_log import METRICS, MetricsLog


def lines(folder):
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def test_a_line_a_look_and_later_ones_are_dropped_on_resuming(tmp_path):
    first = MetricsLog(tmp_path)
    for step in (0, 5, 10):
        first.add({"step": step, "divergence": 1 / (step + 1), "stopped": None})
    first.close()
    again = MetricsLog(tmp_path, steps=5)
    again.add({"step": 9, "divergence": None})
    again.close()
    assert [line["step"] for line in lines(tmp_path)] == [0, 5, 9]


def test_a_new_run_begins_anew(tmp_path):
    MetricsLog(tmp_path).add({"step": 3})
    MetricsLog(tmp_path, steps=0)
    assert lines(tmp_path) == []


def test_nothing_is_kept_without_a_folder(tmp_path):
    MetricsLog(None).add({"step": 1})
    assert list(tmp_path.iterdir()) == []


def test_the_curve_holds_every_look_without_a_folder_too():
    history = MetricsLog(None)
    history.add({"step": 0, "seconds": 1.0, "rate": 0.1, "divergence": 0.5})
    history.add({"step": 4, "seconds": 2.0, "rate": 0.2, "loss": 0.3, "divergence": None, "best": 0.5, "stopped": None})
    assert history.curve() == [
        RecoveryEvaluation(step=0, seconds=1.0, rate=0.1, divergence=0.5),
        RecoveryEvaluation(step=4, seconds=2.0, rate=0.2, loss=0.3),
    ]


def test_the_curve_begins_before_an_interruption(tmp_path):
    first = MetricsLog(tmp_path)
    for step in (0, 5, 10):
        first.add({"step": step, "seconds": 1.0, "rate": 0.1, "divergence": 1 / (step + 1)})
    again = MetricsLog(tmp_path, steps=5)
    again.add({"step": 9, "seconds": 2.0, "rate": 0.1})
    assert [(look.step, look.seconds) for look in again.curve()] == [(0, 1.0), (5, 1.0), (9, 2.0)]
