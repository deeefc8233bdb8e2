from itertools import count

import pytest

from shoal.training import TrainingBudget, loop
from shoal.training.loop import BudgetLoop, LoopState


class Counting(BudgetLoop):
    """Writes down at which steps it evaluates."""

    def __init__(self, budget, num_evaluations, state=None, stop_at=None):
        super().__init__(budget, num_evaluations, state or LoopState())
        self.stop_at, self.evaluated, self.reported = stop_at, [], 0

    def train_step(self):
        return 3

    def evaluate(self):
        self.count_evaluation()
        self.evaluated.append(self.state.step)
        if self.state.step == self.stop_at:
            self.state.stop_reason = "early"

    def report_progress(self):
        self.reported += 1


@pytest.mark.parametrize(
    ("steps", "evaluations", "expected"),
    [(12, 4, [3, 6, 9, 12]), (10, 4, [3, 5, 8, 10]), (3, 5, [1, 2, 3]), (7, 1, [7])],
)
def test_evaluations_are_spread_evenly_and_the_last_is_at_the_end(steps, evaluations, expected):
    run = Counting(TrainingBudget(steps=steps), evaluations)
    run.run()
    assert run.evaluated == expected
    assert (run.state.step, run.state.samples, run.reported) == (steps, 3 * steps, steps)


def test_a_stop_reason_ends_it():
    run = Counting(TrainingBudget(steps=12), 4, stop_at=6)
    run.run()
    assert (run.evaluated, run.state.step) == ([3, 6], 6)


def test_it_continues_from_a_state():
    run = Counting(TrainingBudget(steps=12), 4, LoopState(step=7, samples=21, evaluations=2))
    run.run()
    assert (run.evaluated, run.state.samples) == ([9, 12], 36)
    finished = Counting(TrainingBudget(steps=12), 4, LoopState(step=12, stop_reason="budget"))
    finished.run()
    assert finished.evaluated == []


def test_a_time_counts_what_was_spent_before_an_interruption(monkeypatch):
    clock = count()
    monkeypatch.setattr(loop.time, "perf_counter", lambda: float(next(clock)))
    run = Counting(TrainingBudget(seconds=10.0), 2, LoopState(seconds=6.0))
    run.run()
    assert run.state.step == 4
    assert run.evaluated == [1, 4]
