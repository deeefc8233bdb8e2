"""Recovery inside compress: what is learned, what the plan still says, what is refused, what a resumed run finds."""

import footing
import pytest
import torch
from footing import batches, network

import shoal
import stopwatch
from shoal.errors import DataError, UsageError
from shoal.pipeline import Recover, Settings, compress, run, told
from shoal.recover import DistilSettings
from shoal.recover.distil import _Run

QUICK = Settings(images=36, validation_images=36, latency_seconds=0.001, stand_ins=("linear", "conv3"), longest=2)
LEARN = DistilSettings(rate=0.1, looks=3)


@pytest.fixture(autouse=True)
def _fake_clock(monkeypatch):
    stopwatch.install(monkeypatch)


def data(first=0):
    return [one.args[0] for one in batches(18, 3, 8, 8, count=3, first=first)]


def confident():
    """Answers far apart: a cut costs something that can be won back."""
    model = network()
    with torch.no_grad():
        model.linear.weight *= 30
    return model


def cut(goal=None, **more):
    given = {"validation": data(50), "settings": QUICK, **more}
    return compress(confident(), data(), **(goal or {"macs": 0.6}), **given)


def test_a_plan_recovers_and_its_folder_still_loads(tmp_path):
    plain = cut({"macs": 0.25}).record
    found = cut({"macs": 0.25}, recover=Recover(40, DistilSettings(rate=0.02, looks=3)))
    recovery = found.record.recovery
    assert plain.recovery is None
    assert recovery.divergence_after < recovery.divergence_before
    assert recovery.rewritten == len(found.plan.replaced) > 0
    assert any(note.startswith("recovery: 40 steps") for note in found.record.notes)
    assert found.record.comparison.kl != plain.comparison.kl
    found.save(tmp_path / "o")
    loaded = shoal.load(tmp_path / "o", model=confident)
    assert torch.equal(loaded(data()[0]), found.model(data()[0]))


def test_a_mere_default_gives_way_where_it_cannot_be_done():
    default = Recover("5m", LEARN, asked=False)
    found = compress(confident(), data(), macs=0.6, settings=QUICK, recover=default)
    assert found.record.recovery is None
    assert "not recovered: recovery needs validation data of its own" in " ".join(found.record.warnings)
    short = cut({"macs": 0.25}, recover=Recover("0.000001s", LEARN, asked=False))
    assert short.record.recovery is None
    assert "too short for one step" in " ".join(short.record.notes)
    with pytest.raises(UsageError, match="too short for one step"):
        cut({"macs": 0.25}, recover=Recover("0.000001s", LEARN))


def test_what_lost_nothing_is_left_as_it_is():
    unchanged = cut({"macs": 1.0}, recover=Recover(12, LEARN))
    assert unchanged.plan.actions == []
    assert unchanged.record.recovery is None


def test_removal_recovers_too_and_folding_comes_behind():
    found = cut({"remove": 2}, recover=Recover(12, LEARN), fold=True)
    assert found.record.recovery.steps == 12
    assert found.record.folded


def test_a_number_or_a_word_will_do():
    assert cut({"remove": 1}, recover="none").record.recovery is None
    assert cut({"remove": 1}, recover=3).record.recovery.budget == "3 steps"


def test_an_interrupted_recovery_goes_on_with_the_plan_it_began_with(tmp_path, monkeypatch):
    whole = cut(recover=Recover(9, LEARN))
    step = _Run._step

    def interrupted(self):
        if self.state.step == 5:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(_Run, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cut(recover=Recover(9, LEARN, folder=tmp_path))
    monkeypatch.setattr(_Run, "_step", step)
    monkeypatch.setattr(run, "_planned", lambda *args: pytest.fail("planned again"))
    found = cut(recover=Recover(9, LEARN, folder=tmp_path))
    assert found.record.recovery.resumed
    assert found.plan == whole.plan
    assert found.record.planning == whole.record.planning
    one, other = whole.model.state_dict(), found.model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_cannot_be_recovered_is_refused_before_the_choice(monkeypatch):
    monkeypatch.setattr(told, "dissect", lambda *args: pytest.fail("it began"))
    with pytest.raises(UsageError, match="recovery needs validation data of its own"):
        cut(recover="10", validation=None)
    with pytest.raises(UsageError, match="exact removal loses nothing"):
        cut({"exact": True}, recover="10")
    with pytest.raises(DataError, match=r"unlabelled data: samples of shape \(1, 4, 4\)"):
        cut(recover=Recover(3, unlabelled=[torch.zeros(2, 1, 4, 4)]))
    with pytest.raises(DataError, match="unlabelled data is empty"):
        cut(recover=Recover(3, unlabelled=[]))
    with pytest.raises(UsageError, match="expected steps or a time"):
        cut(recover="soon")


def test_a_plain_network_recovers():
    found = compress(
        footing.plain(), data(), validation=data(50), macs=0.7, settings=QUICK, recover=Recover(9, LEARN)
    )  # fmt: skip
    assert found.record.recovery.divergence_after <= found.record.recovery.divergence_before
