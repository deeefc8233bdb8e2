"""Tables on disk: an interrupted run goes on from them, another goal starts from them, others are refused."""

import shutil

import footing
import pytest
import torch
from footing import batches, network

import stopwatch
from flat_options import typed
from shoal.blocks.prefix_cache import PrefixCache
from shoal.errors import FolderError
from shoal.pipeline import CompressConfig, candidate_table, compress, planner
from shoal.pipeline.candidate_table import CandidateBuilder

pytestmark = pytest.mark.heavy

QUICK = CompressConfig(images=36, validation_images=36, latency_seconds=0.001, stand_ins=("linear", "conv3"), longest=2)


@pytest.fixture(autouse=True)
def _fake_clock(monkeypatch):
    stopwatch.install(monkeypatch)


def data():
    return [one.args[0] for one in batches(12, 3, 8, 8, count=3)]


def planned(tables=None, model=None, **more):
    goal = more.pop("goal", {"macs": 0.6})
    settings = more.pop("settings", QUICK)
    return compress(
        model if model is not None else network(), more.pop("calibration", data()),
        **typed(tables=tables, settings=settings, **goal, **more),
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Tables of a finished run, made once; a goal without a latency times nothing."""
    folder = tmp_path_factory.mktemp("finished") / "t"
    planned(folder)
    return folder


@pytest.fixture
def tables(finished, tmp_path):
    """A copy of them."""
    return shutil.copytree(finished, tmp_path / "t")


class Watch:
    """Counts what tables cost, and keeps the tables."""

    def __init__(self, monkeypatch):
        self.fitted, self.judged, self.timed, self.tables = [], [], 0, None
        fit_all, run_from, make = candidate_table.fit_all, PrefixCache.run_from, CandidateBuilder.build

        def fitting(anatomy, given, wanted, **more):
            self.fitted += [one.name for one in wanted]
            return fit_all(anatomy, given, wanted, **more)

        def running(prefix, *args, **more):
            self.judged.append(args[0])
            return run_from(prefix, *args, **more)

        def shares(*args, **more):
            self.timed += 1
            return stopwatch.shares_in_place(*args, **more)

        def making(maker):
            self.tables = make(maker)
            return self.tables

        monkeypatch.setattr(candidate_table, "fit_all", fitting)
        monkeypatch.setattr(PrefixCache, "run_from", running)
        monkeypatch.setattr("shoal.pipeline.kind_timing.latency_shares", shares)
        monkeypatch.setattr(CandidateBuilder, "build", making)

    def work(self):
        return len(self.fitted), len(self.judged), self.timed


@pytest.fixture
def watch(monkeypatch):
    return Watch(monkeypatch)


def same(one, other):
    assert one.edges == other.edges
    assert (one.whole, one.fixed, one.removal_damages, one.notes) == (
        other.whole,
        other.fixed,
        other.removal_damages,
        other.notes,
    )
    assert one.fitted_by_edge.keys() == other.fitted_by_edge.keys()
    for index, fitted in one.fitted_by_edge.items():
        state = other.fitted_by_edge[index].module.state_dict()
        torch.testing.assert_close(fitted.module.state_dict(), state, rtol=0, atol=0)


class Killed(BaseException):
    """As hard as Ctrl-C."""


def killing(stage, at):
    def progress(said, done, total):
        if said.startswith(stage) and done >= at:
            raise Killed

    return progress


@pytest.mark.parametrize(
    ("stage", "at"),
    [
        pytest.param("timing", 0, marks=pytest.mark.slow),
        ("damage", 3),
        pytest.param("plan", 0, marks=pytest.mark.slow),
        pytest.param("fitting", 2, marks=pytest.mark.slow),
        pytest.param("damage", 40, marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_half_way_goes_on_and_ends_in_the_same_tables_and_network(tmp_path, watch, stage, at):
    goal = {"latency": 0.6} if stage == "timing" else {"macs": 0.6}  # others time nothing
    whole = planned(tmp_path / "whole", goal=goal)
    expected, (fits, forwards, timed) = watch.tables, watch.work()
    with pytest.raises(Killed):
        planned(tmp_path / "t", goal=goal, progress=killing(stage, at))
    before = watch.work()
    result = planned(tmp_path / "t", goal=goal)
    again = [now - then for now, then in zip(watch.work(), before, strict=True)]
    same(watch.tables, expected)
    torch.testing.assert_close(result.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    assert result.plan == whole.plan
    if stage == "damage":
        assert again[0] == 0
        assert again[1] < forwards or at < 40
        assert again[2] == 0
    if stage == "plan":
        assert again == [0, 0, 0]
    assert (fits, forwards, timed) > (0, 0, 0)


@pytest.mark.parametrize("cut", [5, *(pytest.param(cut, marks=pytest.mark.slow) for cut in (400, 3000))])
def test_a_file_that_a_crash_cut_short_gives_the_same_tables(tmp_path, watch, cut):
    planned(tmp_path / "t")
    expected = watch.tables
    lines = tmp_path / "t" / "tables.jsonl"
    lines.write_bytes(lines.read_bytes()[:-cut])
    before = watch.work()
    planned(tmp_path / "t")
    same(watch.tables, expected)
    assert watch.work() > before
    assert watch.work()[2] == before[2]  # the prices stand at the front


@pytest.mark.parametrize(
    "goal",
    [
        pytest.param({"macs": 0.6}, marks=pytest.mark.slow),
        pytest.param({"latency": 0.5}, marks=pytest.mark.slow),
        pytest.param({"params": 0.5, "depth": 4}, marks=pytest.mark.slow),
        pytest.param({"pick": 2}, marks=pytest.mark.slow),
        pytest.param({"max_drop": 60.0, "replace": True}, marks=pytest.mark.slow),
    ],
)
def test_another_goal_by_the_same_tables_measures_and_fits_nothing_again(tmp_path, watch, goal):
    planned(tmp_path / "t", goal={"latency": 0.9})  # a goal without a latency would leave the timing to the next
    before, files = watch.work(), sorted(one.name for one in (tmp_path / "t").iterdir())
    result = planned(tmp_path / "t", goal=goal)
    assert watch.work() == before
    assert sorted(one.name for one in (tmp_path / "t").iterdir()) == files
    fresh = planned(tmp_path / "fresh", goal=goal)
    assert fresh.plan == result.plan
    torch.testing.assert_close(fresh.model.state_dict(), result.model.state_dict(), rtol=0, atol=0)


@pytest.mark.slow
def test_with_and_without_a_folder_the_same_network_comes_out(tmp_path):
    kept, not_kept = planned(tmp_path / "t"), planned(None)
    assert kept.plan == not_kept.plan
    assert kept.record.planning == not_kept.record.planning
    torch.testing.assert_close(kept.model.state_dict(), not_kept.model.state_dict(), rtol=0, atol=0)


def other_weights():
    model = network()
    with torch.no_grad():
        model.linear.bias[0] += 1
    return model


def own_damage(original, output, batch):
    return torch.ones(batch.size)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": other_weights()}, "network was '"),
        ({"model": footing.plain()}, "network was '"),
        ({"calibration": [one + 1 for one in data()]}, "fit_on was '.*judge_on was '"),
        (
            {"settings": CompressConfig(images=36, latency_seconds=0.001, longest=3)},
            "longest was 2, now 3, stand_ins was",
        ),
        ({"exclude": ["layer1.0"]}, r"exclude was \[\], now \['layer1.0'\]"),
        ({"damage": own_damage}, "damage was '.*values.*', now '.*own_damage'"),
    ],
)
def test_tables_of_something_else_are_refused_with_words(tables, changes, words):
    with pytest.raises(FolderError, match=rf"the tables in '.*' were made for something else: .*{words}"):
        planned(tables, **changes)


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_weights_that_are_missing_or_damaged_are_refused(tables, harm):
    file = tables / "stand-ins-0.safetensors"
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(FolderError, match=r"cannot read '.*stand-ins-0.safetensors'[\s\S]*made again"):
        planned(tables)


def test_two_lambdas_are_two_damages():
    def scaled(scale):
        return lambda a, b, c: scale * a

    one, other, again = scaled(1), scaled(2), scaled(1)
    names = [planner.function_id(function) for function in (one, other, again, lambda a, b, c: b)]
    assert names[0] == names[2]
    assert len(set(names)) == 3


def test_the_claim_names_everything_the_tables_depend_on():
    assert {"network", "fit_on", "judge_on", "stand_ins", "longest", "damage", "device"} <= _claimed()


def _claimed():
    seen = {}

    class Stop(Exception):  # noqa: N818 - it only stops
        pass

    def shelf(path, claim, legacy=None):
        seen.update(claim)
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "MeasurementCache", shelf)
        with pytest.raises(Stop):
            planned(None)
    return set(seen)
