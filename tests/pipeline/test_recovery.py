"""Recovery inside compress: what is learned, what the plan still says, what is refused, what a resumed run finds."""

import copy

import footing
import pytest
import torch
from footing import batches, network
from torch import nn

import shoal
import stopwatch
from flat_options import typed
from shoal.batches import Batch
from shoal.errors import DataError, FolderError, OutOfMemoryError, PlanError, SurgeryError, UsageError, WeightsError
from shoal.measure import compare, paired_predictions
from shoal.pipeline import Blocks, Budget, CompressConfig, RecoveryConfig, api, compress, context
from shoal.pipeline.recovery import RecoveryTask, check_recovery, normalize_recovery, skip_or_raise
from shoal.recover import DistillConfig
from shoal.recover.distill import Distillation

pytestmark = pytest.mark.heavy

QUICK = CompressConfig(
    images=36,
    validation_images=36,
    latency_seconds=0.001,
    stand_ins=("linear", "conv3"),
    longest=2,
    table_refit=False,  # nothing here is about the refit of neighbours
)
LEARN = DistillConfig(rate=0.1, looks=3)


@pytest.fixture(autouse=True)
def _fake_clock(monkeypatch):
    stopwatch.install(monkeypatch)


def data(first=0):
    return [one.args[0] for one in batches(18, 3, 8, 8, count=3, first=first)]


def confident():
    """Answers far apart, and batch norms that know the data: a cut costs something that can be won back."""
    model = network().train()
    with torch.no_grad():
        for _ in range(20):
            model(torch.cat(data()))
        model.linear.weight *= 30
    return model.eval()


def answered(images):
    """Mini-batches whose labels are the original's answers: outputs are read as scores of classes."""
    with torch.no_grad():
        return [(x, confident().eval()(x).argmax(1)) for x in images]


def cut(goal=None, **more):
    given = {"validation": data(50), "settings": QUICK, **more}
    return compress(confident(), data(), **typed(**(goal or {"macs": 0.6}), **given))


def test_a_plan_recovers_and_its_folder_still_loads(tmp_path):
    plain = cut({"latency": 0.5}).record
    found = cut({"latency": 0.5}, recover=RecoveryConfig(40, DistillConfig(rate=0.02, looks=3)))
    recovery = found.record.recovery
    assert plain.recovery is None
    assert recovery.divergence_after < recovery.divergence_before
    assert recovery.rewritten == len(found.plan.replaced) > 0
    assert any(note.startswith("recovery: 40 steps") for note in found.record.notes)
    assert found.record.comparison.kl != plain.comparison.kl
    found.save(tmp_path / "o")
    loaded = shoal.load(tmp_path / "o", model=confident)
    assert torch.equal(loaded(data()[0]), found.model(data()[0]))


@pytest.mark.slow
def test_a_mere_default_gives_way_where_it_cannot_be_done():
    default = RecoveryConfig("5m", LEARN, required=False)
    found = compress(confident(), data(), Budget(macs=0.6), recovery=default, config=QUICK)
    assert found.record.recovery is None
    assert "not recovered: recovery needs validation data of its own" in " ".join(found.record.warnings)
    short = cut({"macs": 0.25}, recover=RecoveryConfig("0.000001s", LEARN, required=False))
    assert short.record.recovery is None
    assert "too short for one step" in " ".join(short.record.notes)
    with pytest.raises(UsageError, match="too short for one step"):
        cut({"macs": 0.25}, recover=RecoveryConfig("0.000001s", LEARN))


def test_what_lost_nothing_is_left_as_it_is():
    unchanged = cut({"macs": 1.0}, recover=RecoveryConfig(12, LEARN))
    assert unchanged.plan.actions == []
    assert unchanged.record.recovery is None


def test_removal_recovers_too_and_folding_comes_behind():
    found = cut({"remove": 2}, recover=RecoveryConfig(12, LEARN), fold=True)
    assert found.record.recovery.steps == 12
    assert found.record.folded


def test_a_number_or_a_word_will_do():
    assert cut({"remove": 1}, recover="none").record.recovery is None
    assert cut({"remove": 1}, recover=3).record.recovery.budget == "3 steps"


@pytest.fixture
def without_onednn():
    """Its AVX2 kernels (torch 2.14.1) crash in the backward of this student, whose convolutions have few channels."""
    with torch.backends.mkldnn.flags(enabled=False):
        yield


@pytest.mark.usefixtures("without_onednn")
def test_an_interrupted_recovery_goes_on_with_the_plan_it_began_with(tmp_path, monkeypatch):
    whole = cut(recover=RecoveryConfig(9, LEARN))
    step = Distillation.train_step

    def interrupted(self):
        if self.state.step == 5:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Distillation, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cut(recover=RecoveryConfig(9, LEARN, folder=tmp_path))
    monkeypatch.setattr(Distillation, "train_step", step)
    monkeypatch.setattr(api, "build_planner", lambda *args: pytest.fail("planned again"))
    found = cut(recover=RecoveryConfig(9, LEARN, folder=tmp_path))
    assert found.record.recovery.resumed
    assert found.plan == whole.plan
    assert found.record.planning == whole.record.planning
    one, other = whole.model.state_dict(), found.model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_cannot_be_recovered_is_refused_before_the_choice(monkeypatch):
    monkeypatch.setattr(context, "analyze", lambda *args: pytest.fail("it began"))
    with pytest.raises(UsageError, match="recovery needs validation data of its own"):
        cut(recover="10", validation=None)
    with pytest.raises(UsageError, match="exact removal loses nothing"):
        cut({"exact": True}, recover="10")
    with pytest.raises(DataError, match=r"unlabelled data: samples of shape \(1, 4, 4\)"):
        cut(recover=RecoveryConfig(3, unlabelled=[torch.zeros(2, 1, 4, 4)]))
    with pytest.raises(DataError, match="unlabelled data is empty"):
        cut(recover=RecoveryConfig(3, unlabelled=[]))
    with pytest.raises(UsageError, match="expected steps or a time"):
        cut(recover="soon")
    kept = DistillConfig(cache_teacher=4)
    with pytest.raises(UsageError, match="a budget of 60 seconds does not say how many"):
        cut(recover=RecoveryConfig("1m", kept, folder="anywhere"))
    with pytest.raises(UsageError, match=r"kept on disk .cache_teacher., and there is no folder"):
        cut(recover=RecoveryConfig(3, kept))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False}, raising=False)
    with pytest.warns(UserWarning, match="no instructions for bfloat16"), pytest.raises(UsageError, match="of its own"):
        cut(recover=RecoveryConfig("1m", DistillConfig(precision="bf16")), validation=None)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: (_ for _ in ()).throw(RuntimeError("no such unit")))
    with pytest.raises(UsageError, match=r"bf16.* the device 'cpu' has none: no such unit"):
        cut(recover=RecoveryConfig(3, DistillConfig(precision="bf16")))


def test_recovery_learns_from_what_the_teacher_said_before(tmp_path):
    kept = DistillConfig(rate=0.1, looks=3, cache_teacher=4)
    recovery = cut({"remove": 2}, recover=RecoveryConfig(6, kept, folder=tmp_path)).record.recovery
    assert (recovery.teacher_cache.top_k, recovery.teacher_cache.missed, recovery.features_weight) == (4, 0, 0)
    assert recovery.steps == 6


def test_a_plain_network_recovers():
    found = compress(
        footing.plain(), data(), Budget(macs=0.7), validation=data(50), recovery=RecoveryConfig(9, LEARN), config=QUICK
    )
    assert found.record.recovery.divergence_after <= found.record.recovery.divergence_before


BLOCK = {"blocks": ["layer1.1"]}


def failing(monkeypatch, error):
    """Every recovery fails after five steps; returns the step that does not."""
    step = Distillation.train_step

    def fails(self):
        if self.state.step == 5:
            raise error
        return step(self)

    monkeypatch.setattr(Distillation, "train_step", fails)
    return step


def test_a_mere_default_gives_way_to_a_shortage_of_memory_and_a_later_call_goes_on(tmp_path, monkeypatch):
    whole = cut(BLOCK, recover=RecoveryConfig(9, LEARN))
    default = RecoveryConfig(9, LEARN, folder=tmp_path / "run", required=False)
    step = failing(monkeypatch, RuntimeError("CUDA out of memory\nTried to allocate"))
    found = cut(BLOCK, recover=default)
    assert found.record.recovery is None
    assert found.record.notes[-1] == "not recovered: out of memory: CUDA out of memory"
    assert found.record.compressed.blocks == 5
    with pytest.raises(OutOfMemoryError, match="out of memory"):
        cut(BLOCK, recover=RecoveryConfig(9, LEARN))
    monkeypatch.setattr(Distillation, "train_step", step)
    again = cut(BLOCK, recover=default)
    assert again.record.recovery.resumed
    one, other = whole.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


UNEXPECTED = [
    KeyboardInterrupt(),
    FolderError("the disk is full"),
    WeightsError("the checkpoint is damaged"),
    PlanError("of another network"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    TypeError("NoneType"),
    AttributeError("no such attribute"),
    KeyError("layer"),
    IndexError("out of range"),
    ZeroDivisionError(),
    AssertionError(),
    ValueError("not enough values to unpack"),
    OSError("disk"),
]


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("error", UNEXPECTED, ids=lambda error: type(error).__name__)
def test_interruptions_damaged_files_and_faults_of_the_program_are_not_swallowed(monkeypatch, error, required):
    failing(monkeypatch, error)
    with pytest.raises(type(error)) as raised:
        cut(BLOCK, recover=RecoveryConfig(9, LEARN, required=required))
    assert raised.value is error


@pytest.mark.parametrize("place", ["check_recovery", "load_plan", "save_plan", "RecoveryTask"])
def test_faults_of_the_program_are_not_swallowed_wherever_they_are(monkeypatch, place, tmp_path):
    def broken(*args, **kwargs):
        raise AttributeError("a slip of the pen")

    monkeypatch.setattr(api, place, broken)
    with pytest.raises(AttributeError, match="a slip of the pen"):
        cut(BLOCK, recover=RecoveryConfig(9, LEARN, folder=tmp_path, required=False))


def test_a_folder_of_another_run_leaves_a_mere_default_without_recovery(tmp_path):
    cut(BLOCK, recover=RecoveryConfig(2, LEARN, folder=tmp_path))
    other = {"blocks": ["layer2.1"]}
    found = cut(other, recover=RecoveryConfig(2, LEARN, folder=tmp_path, required=False))
    assert found.record.recovery is None
    assert "was made for another network, goal or data" in " ".join(found.record.warnings)
    with pytest.raises(UsageError, match="was made for another network, goal or data"):
        cut(other, recover=RecoveryConfig(2, LEARN, folder=tmp_path))


def test_what_is_noted_is_the_first_line():
    default = RecoveryConfig(2, required=False)
    assert skip_or_raise(default, DataError("first\nsecond")) == "not recovered: first"
    assert (
        skip_or_raise(default, SurgeryError("it cannot be copied", "Do this.")) == "not recovered: it cannot be copied"
    )
    assert skip_or_raise(default, SurgeryError("")) == "not recovered: SurgeryError"
    with pytest.raises(DataError):
        skip_or_raise(RecoveryConfig(2), DataError("none"))


def test_generators_are_read_again_and_again():
    generated = RecoveryConfig(9, LEARN, training=iter(data(20)), unlabelled=iter(data(80)))
    listed = RecoveryConfig(9, LEARN, training=data(20), unlabelled=data(80))
    one, other = (cut(BLOCK, recover=given).model.state_dict() for given in (generated, listed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    given = normalize_recovery(RecoveryConfig(2, training=iter(data(20))))
    assert [len(given.training(epoch)) for epoch in (1, 2)] == [3, 3]


@pytest.mark.parametrize("more", [{}, {"replace": True}])
def test_the_figures_on_validation_are_those_after_recovery(more):
    goal = {"max_drop": 80.0, **more}
    validation = answered(data(50))
    plain = cut(goal, validation=validation).record
    found = cut(goal, validation=validation, recover=RecoveryConfig(20, DistillConfig(rate=0.02, looks=3)))
    original, after = paired_predictions([confident().eval(), found.model], validation[:2])  # 36 samples
    record = found.record
    assert record.recovery.kept_step > 0
    assert record.validation != plain.validation
    if not more:
        assert record.validation == compare(original, after, "validation")
    drop = 100 * (1 - record.validation.agreement)
    assert record.message == f"{plain.message}; after recovery the drop there is {drop:.2f}"
    assert record.reached == (drop <= 80)


def test_a_drop_that_recovery_makes_worse_is_said(monkeypatch):
    recover = RecoveryTask.run

    def spoiled(*args):
        found = recover(*args)
        nn.init.zeros_(found.model.linear.weight)
        nn.init.zeros_(found.model.linear.bias)
        seldom = confident().eval()(torch.cat(data(50))).argmax(1).bincount(minlength=10).argmin()
        found.model.linear.bias.data[seldom] = 1
        return found

    monkeypatch.setattr(RecoveryTask, "run", spoiled)
    record = cut({"max_drop": 80.0}, validation=answered(data(50)), recover=RecoveryConfig(3, LEARN)).record
    assert not record.reached
    assert record.validation.agreement < 0.2


def test_networks_on_a_disk_and_calibration_as_validation_are_refused():
    gone, calibration = copy.deepcopy(confident()).to("meta"), data()
    example = Batch((calibration[0],))
    with pytest.raises(UsageError, match="some of them are on a disk"):
        check_recovery(RecoveryConfig(2), gone, calibration, data(50), example, exact=False)
    with pytest.raises(UsageError, match="the validation data is the very calibration data"):
        check_recovery(RecoveryConfig(2), confident(), calibration, calibration, example, exact=False)
    default = RecoveryConfig(2, required=False)
    found = compress(
        confident(), calibration, Blocks(BLOCK["blocks"]), validation=calibration, recovery=default, config=QUICK
    )
    assert "not recovered: the validation data is the very calibration data" in " ".join(found.record.warnings)


def test_a_checkpoint_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="cannot use"):
        cut(BLOCK, recover=RecoveryConfig(2, LEARN, folder=tmp_path / "file" / "run"))
