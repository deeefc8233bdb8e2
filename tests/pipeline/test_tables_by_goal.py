"""Tables of a plan: what is timed and fitted for which goal, and what serves the next one."""

import pytest
import torch
from footing import network

import stopwatch
from shoal.batches import Batch
from shoal.measure import cost
from shoal.pipeline import Budget, CompressConfig, candidate_table, kind_timing, predict_plan
from shoal.replace import fit_all
from shoal.replace.fitting import SpanMoments


@pytest.fixture(autouse=True)
def _fake_clock(monkeypatch):
    stopwatch.install(monkeypatch)


def plan_for(goal, folder=None, model=None, threads=None, monkeypatch=None):
    samples = [Batch((torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(seed)),)) for seed in range(2)]
    if threads is not None:
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    config = CompressConfig(tables=folder, latency_seconds=0.01, table_refit=False)
    return predict_plan(model or network(), samples, goal, config=config)


def test_without_a_latency_in_the_goal_nothing_but_the_whole_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(kind_timing, "latency_shares", lambda *args, **kwargs: pytest.fail("blocks are timed"))
    for number, goal in enumerate((Budget(depth=4), Budget(macs=0.6))):
        prediction = plan_for(goal, tmp_path / str(number))
        assert prediction.source == "estimated from MACs"
        assert prediction.plan.latency_ms < prediction.original_ms
        share = prediction.plan.macs / cost(network(), Batch((torch.zeros(1, 3, 8, 8),))).macs
        assert prediction.plan.latency_ms / prediction.original_ms == pytest.approx(share, rel=1e-6)


def test_a_goal_about_depth_alone_fits_full_maps_and_only_what_is_shallower(tmp_path, monkeypatch):
    fitted = []
    monkeypatch.setattr(
        candidate_table, "fit_all", lambda *args, **kwargs: (fitted.extend(args[2]), fit_all(*args, **kwargs))[1]
    )
    plan_for(Budget(depth=4), tmp_path / "a")
    assert fitted
    assert not any(spec.kind.startswith("lowrank") or spec.kind == "scale" for spec in fitted)
    assert all(spec.span.stop - spec.span.start > 1 for spec in fitted)
    before = len(fitted)
    plan_for(Budget(latency=0.6), tmp_path / "a")  # the same folder: only what it lacks is fitted
    names = [spec.name for spec in fitted]
    assert len(fitted) > before
    assert len(set(names)) == len(names)


def test_tables_serve_any_number_of_threads_and_latencies_belong_to_one(tmp_path, monkeypatch):
    timed = []
    shares = kind_timing.latency_shares
    monkeypatch.setattr(
        kind_timing, "latency_shares", lambda *args, **kwargs: (timed.append(1), shares(*args, **kwargs))[1]
    )
    plan_for(Budget(depth=4), tmp_path, threads=1, monkeypatch=monkeypatch)
    plan_for(Budget(depth=3), tmp_path, threads=3, monkeypatch=monkeypatch)
    assert not timed
    for threads, count in ((3, 1), (2, 2), (3, 2)):
        plan_for(Budget(latency=0.7), tmp_path, threads=threads, monkeypatch=monkeypatch)
        assert len(timed) == count
    assert plan_for(Budget(depth=4), tmp_path, threads=2, monkeypatch=monkeypatch).source == "measured"


def test_an_interrupted_fit_keeps_what_is_solved(tmp_path, monkeypatch):
    solve, solved = SpanMoments.solve_all, []

    def interrupted(self, like):
        if len(solved) == 2:
            raise KeyboardInterrupt
        solved.append(self.key)
        return solve(self, like)

    with monkeypatch.context() as patch:
        patch.setattr(SpanMoments, "solve_all", interrupted)
        with pytest.raises(KeyboardInterrupt):
            plan_for(Budget(depth=4), tmp_path)
    again = []
    monkeypatch.setattr(SpanMoments, "solve_all", lambda self, like: (again.append(self.key), solve(self, like))[1])
    plan_for(Budget(depth=4), tmp_path)
    assert len(solved) == 2
    assert again
    assert not set(again) & set(solved)
