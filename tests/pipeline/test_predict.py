"""What the tables promise, without building anything."""

import pytest
from footing import batches, network

import stopwatch
from shoal.errors import NotReachedError, UsageError
from shoal.measure import cost
from shoal.pipeline import Budget, CompressConfig, MaxDrop, ParetoPoint, compress, predict_plan
from shoal.pipeline.cache import MeasurementCache
from shoal.pipeline.plan_builder import PlanBuilder

pytestmark = pytest.mark.heavy

QUICK = CompressConfig(images=36, latency_seconds=0.001, stand_ins=("linear",), longest=2)


@pytest.fixture(autouse=True)
def _fake_clock(monkeypatch):
    stopwatch.install(monkeypatch)


def data():
    return batches(18, 3, 8, 8, count=3)


@pytest.fixture
def tables(tmp_path):
    compress(network(), data(), Budget(latency=0.7), config=CompressConfig.of(QUICK, tables=tmp_path / "t"))
    return tmp_path / "t"


def solved(tables, **target):
    goal = Budget(**target) if target else MaxDrop(1.0, allow_replacement=True)
    return predict_plan(network(), data(), goal, config=CompressConfig.of(QUICK, tables=tables))


def test_finished_tables_are_solved_without_measuring_or_building(tables, monkeypatch):
    for owner, name in ((PlanBuilder, "build"), (MeasurementCache, "append")):
        monkeypatch.setattr(owner, name, lambda *args: pytest.fail("measured or built"))
    found = solved(tables, macs="0.5")
    assert found.plan.macs <= 0.5 * cost(network(), data()[0].take(1)).macs
    assert found.plan.replaced or found.plan.removed
    assert found.source == "measured"
    assert found.front == sorted(found.front, key=lambda one: one.latency_ms)
    assert solved(tables).plan is None
    assert (
        predict_plan(network(), data(), ParetoPoint(2), config=CompressConfig.of(QUICK, tables=tables)).plan
        == found.front[1]
    )


@pytest.mark.slow
def test_it_is_the_plan_that_is_built_first(tables):
    promised = solved(tables, macs="0.5").plan
    built = compress(
        network(), data(), Budget(macs=0.5), config=CompressConfig.of(QUICK, tables=tables)
    ).record.planning
    assert built.rounds[0].damage_guessed == pytest.approx(promised.damage)


def test_what_no_plan_reaches(tables):
    with pytest.raises(NotReachedError, match="no plan meets the budget"):
        solved(tables, macs="0.0001")
    with pytest.raises(UsageError, match="there is no plan 99 on the front"):
        predict_plan(network(), data(), ParetoPoint(99), config=CompressConfig.of(QUICK, tables=tables))


def test_tables_are_made_where_there_are_none(tmp_path):
    assert solved(tmp_path / "new", macs="0.6").plan is not None
    assert (tmp_path / "new" / "tables.json").exists()
