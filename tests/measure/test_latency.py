import pytest
import torch
from torch import nn

from shoal.batches import Batch
from shoal.errors import DataError, ModelRaisedError, SurgeryError, UsageError
from shoal.measure.latency import latency, within_noise
from shoal.record import Latency

QUICK = {"min_seconds": 0.02, "rounds": 6}


class Watched(nn.Module):
    """Notes how it was called."""

    def __init__(self, name, calls, raises=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.name, self.calls, self.raises = name, calls, raises

    def forward(self, x):
        if self.raises:
            raise ValueError("broken on purpose")
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        self.calls.append((self.name, torch.get_num_threads(), torch.is_inference_mode_enabled(), self.training, last))
        return self.norm(self.conv(x))

    def __deepcopy__(self, memo):
        twin = Watched(self.name, self.calls, self.raises)
        twin.load_state_dict(self.state_dict())
        return twin


def batch(samples=2):
    return Batch((torch.randn(samples, 3, 8, 8),))


def state(model):
    tensors = {name: (value.clone(), value.stride()) for name, value in model.state_dict().items()}
    return tensors, [module.training for module in model.modules()]


def assert_unchanged(model, before):
    tensors, modes = before
    for name, value in model.state_dict().items():
        assert torch.equal(value, tensors[name][0])
        assert value.stride() == tensors[name][1]
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_every_network_gets_a_record():
    models = {"original": nn.Conv2d(3, 4, 3), "compressed": nn.Flatten()}
    found = latency(models, batch(3), **QUICK)
    assert list(found) == ["original", "compressed"]
    for one in found.values():
        assert 0 < one.q1_ms <= one.median_ms <= one.q3_ms
        assert 5 <= one.runs <= 6
        assert (one.batch, one.device, one.dtype, one.channels_last) == (3, "cpu", "float32", False)
        assert one.threads == torch.get_num_threads()


def test_networks_take_turns():
    calls = []
    models = {name: Watched(name, calls) for name in "AB"}
    latency(models, batch(), **QUICK)
    order = [name for index, (name, *_) in enumerate(calls) if index == 0 or calls[index - 1][0] != name]
    # One turn each for the first call and for the estimate, then at least five rounds.
    assert "".join(order).startswith("AB" * 7)


@pytest.mark.parametrize("threads", [1, 2])
def test_all_threads_in_inference_and_eval_mode(threads):
    calls = []
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = latency({"A": Watched("A", calls).train()}, batch(), **QUICK)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found["A"].threads == threads
    # The first call is not timed, and outside inference mode: what the model caches must stay usable.
    assert calls[0][2] is False
    assert {call[1:4] for call in calls[1:]} == {(threads, True, False)}


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_model_comes_back_as_it_was(channels_last):
    calls = []
    model = Watched("A", calls).train()
    model.norm.eval()
    before, random_state = state(model), torch.get_rng_state()
    given = Batch((torch.ones(2, 3, 8, 8),))
    found = latency({"A": model}, given, channels_last=channels_last, **QUICK)
    assert_unchanged(model, before)
    assert found["A"].channels_last is channels_last
    assert {last for *_, last in calls} == {channels_last}
    assert given.args[0].is_contiguous()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled()


def test_the_model_comes_back_when_it_raises():
    good, bad = Watched("A", []).train(), Watched("B", [], raises=True).train()
    before = state(good), state(bad)
    with pytest.raises(ModelRaisedError, match="broken on purpose"):
        latency({"A": good, "B": bad}, batch(), **QUICK)
    assert_unchanged(good, before[0])
    assert_unchanged(bad, before[1])


def test_one_network_under_two_names_comes_back_in_its_mode():
    model = Watched("A", []).train()
    latency({"one": model, "two": model}, batch(), **QUICK)
    assert model.training


def test_what_a_model_caches_stays_trainable():
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))
            self.table = None

        def forward(self, x):
            if self.table is None:
                self.table = torch.arange(4.0)
            return x * self.table * self.weight

    model = Caching()
    latency({"A": model}, Batch((torch.randn(2, 4),)), **QUICK)
    model(torch.randn(2, 4)).sum().backward()
    assert model.weight.grad is not None


def test_channels_last_needs_a_copy():
    class Stubborn(nn.Identity):
        def __deepcopy__(self, memo):
            raise TypeError("not this one")

    with pytest.raises(SurgeryError, match="not this one"):
        latency({"A": Stubborn()}, batch(), channels_last=True, **QUICK)


def test_keyword_inputs_and_dtype():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4, dtype=torch.bfloat16)

        def forward(self, *, ids):
            return self.linear(ids)

    found = latency({"A": Keyword()}, Batch(kwargs={"ids": torch.randn(1, 4).bfloat16()}), **QUICK)
    assert (found["A"].dtype, found["A"].batch) == ("bfloat16", 1)


@pytest.mark.parametrize("wrong", [{"min_seconds": 0}, {"min_seconds": float("nan")}, {"rounds": 0}])
def test_impossible_budgets_are_refused(wrong):
    with pytest.raises(UsageError):
        latency({"A": nn.Identity()}, batch(), **wrong)


def test_nothing_to_time_is_refused():
    with pytest.raises(UsageError):
        latency({}, batch())
    with pytest.raises(DataError):
        latency({"A": nn.Identity()}, batch(0))


def record_of(q1, q3):
    return Latency(
        batch=1, median_ms=(q1 + q3) / 2, q1_ms=q1, q3_ms=q3, runs=20,
        device="cpu", dtype="float32", threads=1, channels_last=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [((1, 2), (1.5, 3), True), ((1, 2), (2, 3), True), ((1, 2), (2.1, 3), False), ((1, 9), (4, 5), True)],
)
def test_within_noise(one, other, expected):
    assert within_noise(record_of(*one), record_of(*other)) is expected
    assert within_noise(record_of(*other), record_of(*one)) is expected
