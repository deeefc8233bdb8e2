"""The simulation of a schedule, by hand."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from schedule import Job, on_paper, simulate


def test_jobs_go_to_whoever_is_free_and_a_prefix_is_paid_once_for_each_mini_batch_in_a_row():
    jobs = [Job(0, 4.0), Job(0, 1.0), Job(0, 1.0), Job(1, 1.0)]
    assert simulate(jobs, 1, prefix=0.5).seconds == 8.0
    two = simulate(jobs, 2, prefix=0.5)
    assert two.busy == [4.5, 4.0]  # the second records both mini-batches
    assert two.seconds == 4.5


def test_a_lost_worker_starts_its_task_again_and_records_anew():
    jobs = [Job(0, 2.0), Job(0, 2.0)]
    schedule = simulate(jobs, 1, prefix=1.0, lost=[(4.0, 0)], restart=10.0)
    assert schedule.seconds == 4.0 + 10.0 + 1.0 + 2.0
    assert simulate(jobs, 1, prefix=1.0, lost=[(99.0, 0)], restart=10.0).seconds == 5.0


def test_a_network_on_paper_takes_less_time_with_more_devices():
    eight, many = on_paper()
    assert (eight["workers"], many["workers"]) == (4, 32)
    assert 5 < eight["hours"] / many["hours"] <= 8
    assert eight["hours_with_a_loss_every_quarter"] > eight["hours"]
    assert many["operations"] == pytest.approx(eight["operations"], rel=0.02)
