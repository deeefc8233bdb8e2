import pytest
import torch

from shoal.epsilon.gate import Gate
from shoal.epsilon.monitor import GateMonitor
from shoal.training.engine import Engine


@pytest.fixture
def gates():
    return [Gate("a", 0, 1.0), Gate("b", 0, 1.0), Gate("b", 1, 1.0)]


@pytest.fixture
def watch(gates):
    return GateMonitor(gates, Engine("cpu", "fp32"))


def step(watch, *sizes):
    for gate, size in zip(watch.gates, sizes, strict=True):
        gate(torch.full((1, 2), float(size)))
    watch.update()


def test_a_block_is_closed_if_all_its_gates_were_on_every_step(watch):
    step(watch, 0.5, 0.5, 0.2)
    step(watch, 0.9, 0.5, 1.5)
    seen = watch.end_epoch(gates_work=True)
    assert seen.closed == ["a"]
    assert seen.shares == {"a": 0.0, "b": 0.5}
    assert seen.largest == pytest.approx({"a": 0.9, "b": 1.5})
    assert seen.means == pytest.approx({"a": 0.9, "b": 1.5})


def test_streaks_count_epochs_in_a_row(watch):
    for size in (0.5, 0.5, 2.0, 0.5):
        step(watch, 0.5, size, 0.5)
        watch.end_epoch(gates_work=True)
    assert watch.streaks == {"a": 4, "b": 1}
    assert (watch.closed_epochs(1), watch.closed_epochs(2)) == (["a", "b"], ["a"])


def test_every_epoch_is_counted_anew(watch):
    step(watch, 2.0, 2.0, 2.0)
    watch.end_epoch(gates_work=True)
    step(watch, 0.1, 0.1, 0.1)
    assert watch.end_epoch(gates_work=True).largest == pytest.approx({"a": 0.1, "b": 0.1})


def test_a_nan_counts_as_open(watch):
    step(watch, float("nan"), 0.1, 0.1)
    assert watch.end_epoch(gates_work=True).closed == ["b"]


def test_nothing_is_closed_while_epsilon_is_held_at_zero(watch):
    step(watch, 0.0, 0.0, 0.0)
    assert watch.end_epoch(gates_work=False).closed == []
    assert watch.closed_epochs(1) == []


def test_forgotten_blocks_are_no_longer_watched(watch):
    watch.forget(["b"])
    step(watch, 0.5)
    assert watch.end_epoch(gates_work=True).shares == {"a": 0.0}
    assert watch.streaks == {"a": 1}
