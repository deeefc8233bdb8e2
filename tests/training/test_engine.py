from contextlib import nullcontext

import pytest
import torch
from torch import nn

from shoal.batches import Batch
from shoal.errors import SurgeryError, UsageError
from shoal.training.budget import TrainingBudget
from shoal.training.engine import Engine, check_precision, favours_channels_last, warn_of_slow_precision


def test_it_works_on_a_copy_in_the_layout_asked_for():
    model = nn.Conv2d(3, 4, 3)
    placed = Engine("cpu", "fp32", channels_last=True).placed(model)
    assert placed is not model
    assert placed.weight.is_contiguous(memory_format=torch.channels_last)
    assert model.weight.is_contiguous()
    batch = Engine("cpu", "fp32", channels_last=True).moved(Batch((torch.randn(2, 3, 4, 4),)))
    assert batch.args[0].is_contiguous(memory_format=torch.channels_last)


def test_two_engines_of_different_precision_live_in_one_process():
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with Engine("cpu", precision).autocast():
            assert layer(x).dtype == dtype


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_card_that_only_emulates_bfloat16_is_refused_by_its_name(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old Card")
    with pytest.raises(UsageError, match="the device 'Old Card' does not compute in it") as caught:
        check_precision("bf16", torch.device(device))
    assert "--bf16" in caught.value.hint
    check_precision("fp32", torch.device(device))


def test_the_precision_of_the_launcher_is_obeyed_or_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    check_precision("bf16", torch.device("cpu"))
    with pytest.raises(UsageError, match=r"accelerate launch asks for mixed precision in bf16, .* in fp32") as caught:
        check_precision("fp32", torch.device("cpu"))
    assert "--bf16" in caught.value.hint
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(UsageError, match="precision in fp16"):
        check_precision("bf16", torch.device("cpu"))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    check_precision("bf16", torch.device("cpu"))


def test_a_device_without_bfloat16_is_refused():
    with pytest.raises(UsageError, match="the device 'meta' has none"):
        check_precision("bf16", torch.device("meta"))
    check_precision("fp32", torch.device("meta"))
    check_precision("bf16", torch.device("cpu"))


@pytest.mark.parametrize(
    ("able", "slow"),
    [
        ({"avx512_bf16": False, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, False),
        ({"bf16": False}, True),
        ({"bf16": True, "sve_bf16": False}, False),
        ({"architecture": "unknown"}, False),
    ],
)
def test_a_processor_that_emulates_bfloat16_is_warned_of_before_time_is_spent(monkeypatch, able, slow):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    cpu, minutes, steps = torch.device("cpu"), TrainingBudget(seconds=60), TrainingBudget(steps=9)
    with pytest.warns(UserWarning, match=r"no instructions for bfloat16.*leave out --bf16") if slow else nullcontext():
        warn_of_slow_precision("bf16", cpu, minutes)
    for given in (("fp32", cpu, minutes), ("bf16", cpu, steps), ("bf16", torch.device("cuda"), minutes)):
        warn_of_slow_precision(*given)
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in the lowest torch
    warn_of_slow_precision("bf16", cpu, minutes)


def test_one_process_has_nothing_to_add_up():
    engine = Engine("cpu", "fp32")
    values = torch.tensor([1.0, 2.0])
    for together in (engine.summed, engine.averaged, engine.highest):
        assert torch.equal(together(values), values)
    assert (engine.processes, engine.rank, engine.is_main) == (1, 0, True)


def test_random_numbers_go_on_where_they_stopped():
    engine = Engine("cpu", "fp32")
    with torch.random.fork_rng():
        state = engine.random_state()
        expected = torch.rand(3)
        engine.set_random_state({**state, "model.x": torch.ones(1)})
        torch.rand(7)
        engine.apply_random_state()
        assert torch.equal(torch.rand(3), expected)


def test_the_runner_is_made_anew_when_the_network_has_changed():
    engine, pair = Engine("cpu", "fp32", compile_=True), nn.Linear(2, 2)
    first = engine.runner(pair)
    assert engine.runner(pair) is first
    engine.changed()
    assert engine.runner(pair) is not first


def test_what_cannot_be_copied_is_refused():
    class Stubborn(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("no twins")

    with pytest.raises(SurgeryError, match="cannot be copied: no twins"):
        Engine("cpu", "fp32").placed(Stubborn(2, 2))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x)


def learn():
    from shoal.recover import DistillConfig, distill

    batch = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    settings = DistillConfig(rate=0.01, precision="fp32")
    return distill(Pair(), Pair(), [batch], validation=[batch + 1], budget=2, config=settings)


@pytest.fixture
def users_accelerator():
    """An Accelerator of the user's, whose state is nobody else's afterwards."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(mixed_precision="bf16", cpu=True, gradient_accumulation_steps=3)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("work", [learn, lambda: Engine("cpu", "fp32"), lambda: Engine("cpu", "bf16")])
def test_the_accelerator_of_a_caller_is_as_it_was(work, users_accelerator):
    from accelerate.state import AcceleratorState, GradientState, PartialState

    mine = users_accelerator
    states = [dict(one._shared_state) for one in (AcceleratorState, GradientState, PartialState)]
    work()
    assert (mine.mixed_precision, mine.device, mine.gradient_accumulation_steps) == ("bf16", torch.device("cpu"), 3)
    assert [dict(one._shared_state) for one in (AcceleratorState, GradientState, PartialState)] == states
    with mine.autocast():
        assert Pair()(torch.ones(1, 4)).dtype == torch.bfloat16


@pytest.mark.parametrize("work", [learn, lambda: Engine("cpu", "bf16")])
def test_one_process_leaves_no_state_that_would_bind_an_accelerator_made_later(work):
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    work()
    assert (AcceleratorState._shared_state, PartialState._shared_state) == ({}, {})


def test_precision_is_that_of_the_engine_whatever_the_caller_trains_in(users_accelerator):
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    with Engine("cpu", "fp32").autocast():
        assert layer(x).dtype == torch.float32
    with Engine("cpu", "bf16").autocast():
        assert layer(x).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("model", "device", "favours"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3)), "cpu", True),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)), "cpu", False),
        (nn.Linear(3, 4), "cpu", False),
        (nn.Conv2d(3, 4, 3), "cuda", False),
    ],
)
def test_dense_convolutions_on_a_cpu_favour_the_channels_last(model, device, favours):
    assert favours_channels_last(model, device) is favours
