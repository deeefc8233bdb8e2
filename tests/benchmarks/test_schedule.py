"""The simulation of a schedule, by hand."""

import sys
from importlib import import_module
from pathlib import Path

import pytest


@pytest.fixture
def schedule():
    """The script, imported; the folder of the benchmarks is not left on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        yield import_module("schedule")
    sys.modules.pop("schedule", None)


def test_jobs_go_to_whoever_is_free_and_a_prefix_is_paid_once_for_each_mini_batch_in_a_row(schedule):
    job, simulate = schedule.Job, schedule.simulate
    jobs = [job(0, 4.0), job(0, 1.0), job(0, 1.0), job(1, 1.0)]
    assert simulate(jobs, 1, prefix=0.5).seconds == 8.0
    two = simulate(jobs, 2, prefix=0.5)
    assert two.busy == [4.5, 4.0]  # the second records both mini-batches
    assert two.seconds == 4.5


def test_a_lost_worker_starts_its_task_again_and_records_anew(schedule):
    job, simulate = schedule.Job, schedule.simulate
    jobs = [job(0, 2.0), job(0, 2.0)]
    delayed = simulate(jobs, 1, prefix=1.0, lost=[(4.0, 0)], restart=10.0)
    assert delayed.seconds == 4.0 + 10.0 + 1.0 + 2.0
    assert simulate(jobs, 1, prefix=1.0, lost=[(99.0, 0)], restart=10.0).seconds == 5.0


def test_a_network_on_paper_takes_less_time_with_more_devices(schedule):
    eight, many = schedule.on_paper()
    assert (eight["workers"], many["workers"]) == (4, 32)
    assert 5 < eight["hours"] / many["hours"] <= 8
    assert eight["hours_with_a_loss_every_quarter"] > eight["hours"]
    assert many["operations"] == pytest.approx(eight["operations"], rel=0.02)


def test_what_is_predicted_is_what_one_worker_took(schedule):
    task, portion = schedule.WorkerTask, schedule.Portion
    tasks = [task(portion(index, (part,))) for index in range(2) for part in "ab"]

    def took(wall, prefix):
        return {"process": 1, "cpu": wall / 2, "wall": wall, "prefix_cpu": prefix / 2, "prefix_wall": prefix}

    times = [took(3.0, 1.0), took(2.0, 0.0), took(3.0, 1.0), took(2.0, 0.0)]
    alone = {"workers": 1, "wall_seconds": 12.0, "tasks": times}  # half a second goes by between two tasks
    alone |= {"start_seconds": 0.0, "busiest_cpu_seconds": 5.0, "total_cpu_seconds": 5.0, "other_cpu_seconds": 3.0}
    assert schedule.predicted(tasks, alone, 1, "wall").seconds == 12.0
    assert schedule.predicted(tasks, alone, 1, "cpu").seconds == 5.0
    assert schedule.predicted(tasks, alone, 2, "wall").busy == [7.0, 7.0]  # each records both mini-batches
    assert schedule.cost_of_a_forward([alone], 8.0) == 4.0 / 8.0
    two = {**alone, "workers": 2, "wall_seconds": 8.0, "busiest_cpu_seconds": 3.0, "tasks": []}
    four = {**two, "workers": 4, "wall_seconds": 10.0}
    rows = schedule.summary(tasks, [alone, two, four], 2)
    assert [row["speedup_wall"] for row in rows] == [1.0, 1.5, 1.2]
    assert rows[1]["error_wall"] == 7.0 / 8.0 - 1
    assert rows[2]["predicted_wall_seconds"] == 4.5  # on two cores: 6 s of four workers, 3 s of what serves them
