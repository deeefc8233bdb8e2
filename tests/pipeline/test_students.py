"""Students on the whole way: in the tables, on the shelf, in plans, saved and loaded."""

import gc
import weakref

import footing
import pytest
import torch
from footing import batches, maker, network

import stopwatch
from flat_options import typed
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.errors import UsageError
from shoal.pipeline import CompressConfig, RecoveryConfig, candidate_table, compress
from shoal.pipeline.cache import MeasurementCache
from shoal.pipeline.greedy import RemovalChoice
from shoal.pipeline.plan_checkpoint import load_plan, save_plan
from shoal.pipeline.result import CompressedModel
from shoal.plan import Plan, Replace
from shoal.recover import DistillConfig, TrainingBudget
from shoal.store import load
from shoal.surgery import apply
from shoal.surgery.replace import replace_spans_

pytestmark = pytest.mark.heavy

QUICK = CompressConfig(
    images=36,
    validation_images=60,
    latency_seconds=0.001,
    stand_ins=("block", "narrow"),
    longest=3,
    student_budget=8,
    table_refit=False,  # nothing here is about the refit of neighbours
)


@pytest.fixture(autouse=True)
def _fake_clock(monkeypatch):
    stopwatch.install(monkeypatch)


def data(first=0, count=3, size=12):
    return [one.args[0] for one in batches(size, 3, 8, 8, count=count, first=first)]


def taught(shelf=None, **more):
    more = {
        "kinds": ("block", "narrow", "conv3"),
        "student_budget": TrainingBudget(steps=6),
        "longest": 3,
        "refit": None,
    } | more
    return maker(shelf=shelf, **more)


@pytest.fixture(scope="module")
def tables():
    return taught().build()


def test_they_stand_in_the_table_beside_the_closed_forms(tables):
    kinds = {one.kind for one in tables.fitted_by_edge.values()}
    assert {"conv3", "narrow", "block"} <= kinds
    keeps = {edge.start: edge for edge in tables.edges if edge.action == "keep"}
    for index, one in tables.fitted_by_edge.items():
        if one.stand_in.student:
            edge = tables.edges[index]
            assert edge.depth == len(one.stand_in.copies)
            assert edge.macs < sum(keeps[number].macs for number in range(edge.start, edge.stop))
    assert any("students learned side by side" in note for note in tables.notes)


def test_their_damage_is_that_of_the_network_with_them_in_place(tables):
    one = taught()
    for index, fitted in tables.fitted_by_edge.items():
        if not fitted.stand_in.student:
            continue
        own = analyze(network(), one.fit[0].take(2))
        replace_spans_(own, [Replace(paths=list(fitted.span.paths), stand_in=fitted.stand_in)],
                       {fitted.span.paths[0]: fitted.module})  # fmt: skip
        with torch.no_grad():
            kl = [
                (original.log_softmax(1).exp() * (original.log_softmax(1) - own.model(x).log_softmax(1))).sum(1)
                for x in (batch.args[0] for batch in one.judge)
                for original in [network()(x)]
            ]
        assert tables.edges[index].raw_damage == pytest.approx(float(torch.cat(kl).mean()), rel=1e-3, abs=1e-7)


def test_none_are_made_unless_asked_for():
    made = maker(longest=3).build()
    assert not any(one.stand_in.student for one in made.fitted_by_edge.values())


def test_what_was_trained_is_not_trained_again(tmp_path, monkeypatch):
    claim = {"students": True}
    first = taught(MeasurementCache(tmp_path / "t", claim)).build()
    monkeypatch.setattr("shoal.pipeline.candidate_table.train_students", lambda *_, **__: pytest.fail("trained again"))
    again = taught(MeasurementCache(tmp_path / "t", claim)).build()
    assert again.edges == first.edges
    assert again.notes == first.notes
    for index, one in first.fitted_by_edge.items():
        torch.testing.assert_close(
            again.fitted_by_edge[index].module.state_dict(), one.module.state_dict(), rtol=0, atol=0
        )


def test_the_untrained_are_gone_before_others_learn(monkeypatch):
    made, alive, clock = weakref.WeakSet(), [], stopwatch.FakeClock(batches(12, 3, 8, 8)[0])
    untrained, train = candidate_table._untrained, candidate_table.train_students

    def watched(*given):
        found = untrained(*given)
        made.update(placed.module for _, placed in found)
        return found

    def training(*given, **named):
        clock.asked.clear()  # it remembers modules
        gc.collect()
        alive.append(len(made))
        return train(*given, **named)

    monkeypatch.setattr(candidate_table, "_untrained", watched)
    monkeypatch.setattr(candidate_table, "train_students", training)
    taught(kinds=("block",), clock=clock).build()
    assert alive == [0]


def planned(**more):
    return compress(network(), data(), **typed(**{"settings": QUICK, **more}))


@pytest.fixture(scope="module")
def tables_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("students") / "t"


@pytest.fixture(scope="module")
def plan(tables_folder):
    """What comes of a plan with students, made once; its tables are in the folder."""
    with pytest.MonkeyPatch.context() as patch:
        stopwatch.install(patch)
        return planned(macs=0.6, tables=tables_folder)


def replaced(result):
    return [one for one in result.plan.actions if isinstance(one, Replace)]


def test_the_plan_rebuilds_them_and_what_was_saved_loads_bitwise(tmp_path, plan):
    result = plan
    assert {one.stand_in.kind for one in replaced(result)} <= {"block", "narrow"}
    assert replaced(result)
    assert Plan.model_validate_json(result.plan.model_dump_json()) == result.plan
    result.save(tmp_path / "o")
    x = batches(5, 3, 8, 8, first=7)[0].args[0]

    def others():
        """The same factory with other weights."""
        torch.manual_seed(99)
        return footing.networks.CifarResNet(2, widths=(4, 8, 16))

    with torch.no_grad():
        expected = result.model(x)
        assert torch.equal(load(tmp_path / "o", model=network)(x), expected)
        assert torch.equal(load(tmp_path / "o", model=others)(x), expected)
        again = apply(network(), result.plan, weights_follow=True).eval()
        again.load_state_dict(result.model.state_dict())
        assert torch.equal(again(x), expected)


def test_so_many_steps_give_the_same_plan(plan):
    one, other = plan, planned(macs=0.6)
    assert one.plan == other.plan
    torch.testing.assert_close(one.model.state_dict(), other.model.state_dict(), rtol=0, atol=0)


def test_they_recover_and_an_interrupted_recovery_finds_its_cut(tmp_path):
    steps = RecoveryConfig(6, DistillConfig(rate=0.01, looks=2), folder=tmp_path)
    result = planned(macs=0.6, validation=data(first=40, count=2), recover=steps)
    assert result.record.recovery.divergence_after <= result.record.recovery.divergence_before
    again = apply(network(), result.plan, weights_follow=True)
    again.load_state_dict(result.model.state_dict())


def test_a_kept_cut_comes_back_with_its_students(tmp_path, plan):
    result = plan
    example = Batch((data()[0][:2],))
    save_plan(
        tmp_path, CompressedModel(result.model, RemovalChoice([], {}, {}, True, "done"), replaced(result)), {"a": 1}
    )
    found = load_plan(tmp_path, network(), example, {"a": 1})
    x = data()[0]
    with torch.no_grad():
        assert torch.equal(found.model(x), result.model(x))


def test_a_depth_counts_their_blocks():
    result = planned(depth=3)
    assert result.record.compressed.blocks <= 3


def test_tables_of_another_budget_are_refused(plan, tables_folder):
    other = CompressConfig(**{**vars(QUICK), "student_budget": "90s"})
    with pytest.raises(Exception, match="student_budget was '8 steps', now '90 seconds'"):
        planned(macs=0.6, tables=tables_folder, settings=other)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"stand_ins": ("conv9",)}, "no stand-in is called 'conv9'"),
        ({"student_budget": "none"}, "students without a budget learn nothing"),
        ({"student_budget": "soon"}, "expected steps or a time"),
    ],
)
def test_what_makes_no_sense_is_refused(given, said):
    with pytest.raises(UsageError, match=said):
        CompressConfig(**given)
