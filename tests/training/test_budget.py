import pytest

from shoal.errors import UsageError
from shoal.training import TrainingBudget, read_budget


@pytest.mark.parametrize(
    ("text", "steps", "seconds"),
    [("2000", 2000, None), (7, 7, None), ("90s", None, 90), ("10m", None, 600), ("1.5h", None, 5400)],
)
def test_steps_and_times(text, steps, seconds):
    assert read_budget(text) == TrainingBudget(steps, seconds)


def test_none_is_no_recovery():
    assert read_budget("none") is None
    assert read_budget(None) is None


@pytest.mark.parametrize("text", ["", "soon", "-5", "10 minutes", "1.5", "5d", "nan"])
def test_anything_else_is_refused_with_the_forms(text):
    with pytest.raises(UsageError, match="90s, 10m, 2h"):
        read_budget(text)


@pytest.mark.parametrize("text", ["0", "0s"])
def test_nothing_is_too_short_for_one_step(text):
    with pytest.raises(UsageError, match="too short for one step"):
        read_budget(text)


def test_what_is_spent():
    assert TrainingBudget(steps=10).spent(5, 1e9) == 0.5
    assert TrainingBudget(seconds=10.0).spent(10**9, 5.0) == 0.5
    assert TrainingBudget(steps=10).progress(5, 0.0) == ("steps", 5, 10)
    assert TrainingBudget(seconds=10.0).progress(5, 3.9) == ("seconds", 3, 10)
    assert (str(TrainingBudget(steps=10)), str(TrainingBudget(seconds=90.0))) == ("10 steps", "90 seconds")


def test_a_part_of_a_budget_is_one_of_its_kind():
    assert TrainingBudget(steps=300).part(0.1) == TrainingBudget(steps=30)
    assert TrainingBudget(steps=3).part(0.1) == TrainingBudget(steps=1)
    assert TrainingBudget(seconds=60.0).part(0.1) == TrainingBudget(seconds=6.0)
