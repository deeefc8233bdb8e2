import re

import pytest
import torch
from footing import batches, network, plain
from torch import nn

import networks
import stopwatch
from shoal.blocks import analyze
from shoal.measure import cost
from shoal.pipeline.cache import MeasurementCache
from shoal.pipeline.candidate_table import removal_candidates
from shoal.pipeline.costs import ZERO_COST, CostModel, shape_key
from shoal.pipeline.latency_backends import MeasuredLatency, SeveralBatchSizes
from shoal.pipeline.profiling import PlacedModule
from shoal.replace import build_segments, find_spans


def prices(model=None, clock=None, shelf=None):
    [data] = batches(4, 3, 8, 8, count=1)
    anatomy = analyze(model if model is not None else network(), data.take(2))
    one = CostModel(
        anatomy, build_segments(anatomy), data, clock or stopwatch.FakeClock(data), shelf or MeasurementCache(None, {})
    )
    return one, removal_candidates(anatomy, one.segments)


def test_every_step_costs_what_it_costs_alone_and_the_rest_is_fixed():
    one, others = prices()
    one.measure(others)
    [data] = batches(1, 3, 8, 8, count=1)
    whole = cost(network(), data)
    assert (one.whole.macs, one.whole.params) == (whole.macs, whole.params)
    assert one.whole.latency_ms == pytest.approx(stopwatch.milliseconds(network(), data))
    assert list(one.steps) == [f"layer{i}.{j}" for i in (1, 2, 3) for j in (0, 1)]
    for path, price in one.steps.items():
        module = network().get_submodule(path)
        assert price.params == sum(p.numel() for p in module.parameters())
        assert price.latency_ms == pytest.approx(stopwatch.on_zeros(module, one.segments.segment(path).in_shape))
    for name in ("latency_ms", "macs", "params"):
        total = getattr(one.fixed, name) + sum(getattr(price, name) for price in one.steps.values())
        assert total == pytest.approx(getattr(one.whole, name))


def test_a_clock_by_which_the_parts_take_longer_than_the_whole_leaves_nothing_fixed():
    class Slow(stopwatch.FakeClock):
        def time_modules(self, group, shape):
            return dict.fromkeys(group, 1000.0)

    [data] = batches(4, 3, 8, 8, count=1)
    one, others = prices(clock=Slow(data))
    one.measure(others)
    assert one.fixed.latency_ms == 0
    assert one.fixed.params > 0


def test_a_span_takes_the_sum_of_its_steps():
    one, others = prices()
    one.measure(others)
    [span] = [span for span in find_spans(one.graph, one.segments, 2) if (span.start, span.stop) == (1, 3)]
    assert one.span(span).latency_ms == pytest.approx(
        sum(one.steps[path].latency_ms for path in ("layer1.1", "layer2.0"))
    )


def test_alike_modules_are_asked_for_once():
    one, others = prices(network(3))
    one.measure(others)
    asked = [module for what, _, module in one.backend.asked if what == "module"]
    blocks = [module for module in asked if isinstance(module, networks.CifarBlock)]
    assert len(blocks) == 5  # layer1; the first of layer2 and layer3, and the others there
    assert one.steps["layer1.0"] == one.steps["layer1.2"]


class Tails(nn.Module):
    """Two remainders without parameters on the same shape: a ReLU, and a shortcut that halves the image."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layers = nn.Sequential(networks.CifarBlock(4, 4, 1), networks.CifarBlock(4, 8, 2))

    def forward(self, x):
        return self.layers(self.stem(x)).mean(dim=(2, 3))


def test_what_is_left_of_unlike_blocks_has_a_price_each():
    torch.manual_seed(0)
    one, others = prices(networks.randomised(Tails()))
    assert {placed.shape for placed in others.values()} == {(4, 8, 8)}
    assert len({shape_key(placed.module, placed.shape) for placed in others.values()}) == 2
    one.measure(others)
    asked = {id(module) for what, _, module in one.backend.asked if what == "module"}
    assert asked >= {id(placed.module) for placed in others.values()}
    assert all(one.lookup(placed.module, placed.shape).latency_ms > 0 for placed in others.values())


def test_an_identity_is_free_and_never_asked_for():
    one, others = prices()
    one.measure({**others, "nothing": PlacedModule(nn.Identity(), (4, 8, 8), ("layer1.0",))})
    assert one.lookup(nn.Identity(), (4, 8, 8)) == ZERO_COST
    assert not any(isinstance(module, nn.Identity) for _, _, module in one.backend.asked)


def test_likeness_tells_settings_parameters_and_shapes_apart():
    def conv(**more):
        return nn.Conv2d(4, 4, 3, **more)

    assert shape_key(conv(), (4, 8, 8)) == shape_key(conv(), (4, 8, 8))
    keys = [
        shape_key(conv(), (4, 8, 8)),
        shape_key(conv(), (4, 9, 9)),
        shape_key(conv(stride=2), (4, 8, 8)),
        shape_key(conv(bias=False), (4, 8, 8)),
        shape_key(nn.Sequential(conv(), nn.ReLU()), (4, 8, 8)),
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    "norm",
    [
        *(nn.BatchNorm2d(4), nn.BatchNorm1d(4, affine=False), nn.InstanceNorm2d(4), nn.GroupNorm(2, 4)),
        *(nn.LayerNorm((4, 2)), nn.LayerNorm(4, elementwise_affine=False), nn.RMSNorm(4)),
        nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
    ],
)
def test_tables_are_found_under_every_version_of_torch(norm, monkeypatch):
    """Newer ones write `bias=` into the description of a norm, older ones do not."""
    key = shape_key(norm, (4, 8, 8))
    for kind in {type(module) for module in norm.modules() if "Norm" in type(module).__name__}:
        now = kind.extra_repr
        monkeypatch.setattr(kind, "extra_repr", lambda self, now=now: re.sub(", bias=(True|False)", "", now(self)))
    assert "bias=True" not in repr(norm)
    assert shape_key(norm, (4, 8, 8)) == key


def test_what_the_shelf_holds_is_not_asked_for_again(tmp_path):
    first, others = prices(shelf=MeasurementCache(tmp_path / "t", {}))
    first.measure(others)
    assert first.backend.asked
    again, others = prices(shelf=MeasurementCache(tmp_path / "t", {}))
    again.measure(others)
    assert again.backend.asked == []
    assert (again.steps, again.whole, again.candidates) == (first.steps, first.whole, first.candidates)


def test_another_clock_is_asked_even_where_the_shelf_holds_prices(tmp_path):
    first, others = prices(shelf=MeasurementCache(tmp_path / "t", {}))
    first.measure(others)
    [data] = batches(4, 3, 8, 8, count=1)
    other, others = prices(shelf=MeasurementCache(tmp_path / "t", {}), clock=stopwatch.FakeClock(data, source="other"))
    other.measure(others)
    assert other.backend.asked


@pytest.mark.parametrize("make", [network, plain])
def test_this_machine_times_steps_where_they_stand(monkeypatch, make):
    stopwatch.install(monkeypatch)
    seen = []

    def twice(model, line, others, batch, **more):
        seen.append(set(others))
        steps, found = stopwatch.shares_in_place(model, line, others, batch, **more)
        return {path: 2 * one for path, one in steps.items()}, {key: 3 * one for key, one in found.items()}

    monkeypatch.setattr("shoal.pipeline.kind_timing.latency_shares", twice)
    [data] = batches(4, 3, 8, 8, count=1)
    model = make()
    one, others = prices(model, clock=MeasuredLatency(next(model.parameters()), data))
    one.measure(others)
    assert len(seen) == 1
    for path, price in one.steps.items():
        step = one.segments.segment(path)
        assert price.latency_ms == pytest.approx(
            2 * stopwatch.on_zeros(one.segments.module(model, path), step.in_shape)
        )
    for placed in others.values():
        alone = stopwatch.on_zeros(placed.module, placed.shape)
        assert one.lookup(placed.module, placed.shape).latency_ms == pytest.approx(3 * alone)


def test_alike_steps_take_the_mean_of_what_was_measured_and_their_sum_stays(monkeypatch):
    stopwatch.install(monkeypatch)
    shares = {"layer1.0": 0.10, "layer1.1": 0.20, "layer2.0": 0.1, "layer2.1": 0.1, "layer3.0": 0.1, "layer3.1": 0.1}
    monkeypatch.setattr(
        "shoal.pipeline.kind_timing.latency_shares",
        lambda model, line, others, batch, **_: (shares, dict.fromkeys(others, 0)),
    )
    [data] = batches(4, 3, 8, 8, count=1)
    one, others = prices(clock=MeasuredLatency(torch.zeros(1), data))
    one.measure(others)
    found = {path: price.latency_ms / one.whole.latency_ms for path, price in one.steps.items()}
    assert found["layer1.0"] == found["layer1.1"] == pytest.approx(0.15)
    assert sum(found.values()) == pytest.approx(sum(shares.values()))


def test_latencies_are_by_likeness():
    one, others = prices()
    one.measure(others)
    found = one.latencies()
    step = one.segments.segment("layer2.1")
    assert found[shape_key(one.graph.model.layer2[1], step.in_shape)] == one.steps["layer2.1"].latency_ms
    for key, price in one.candidates.items():
        assert found[key] == price.latency_ms
    assert any("ShortcutModule on (4, 8, 8)" in words for words in one.labels.values())


class PerCall(stopwatch.FakeClock):
    """Every module takes so many milliseconds a call, whatever the mini-batch, and the fake clock's for each sample."""

    def time_modules(self, group, shape):
        times = super().time_modules(group, shape)
        return {name: 0.01 + self.batch.size * ms for name, ms in times.items()}

    def time_models(self, group, *, precise=False):
        times = super().time_models(group, precise=precise)
        return {name: 0.1 + self.batch.size * ms for name, ms in times.items()}


def test_costs_at_several_batch_sizes():
    clocks = [PerCall(batches(size, 3, 8, 8, count=1)[0]) for size in (4, 1)]
    alone = []
    for clock in clocks:
        one, others = prices(clock=clock)
        one.measure(others)
        alone.append(one)
    shelf = MeasurementCache(None, {})
    both, others = prices(clock=SeveralBatchSizes(clocks), shelf=shelf)
    both.measure(others)
    large, small = alone
    assert (both.whole.latency_ms, both.whole.latencies) == (large.whole.latency_ms, (small.whole.latency_ms,))
    assert both.whole.latencies[0] != both.whole.latency_ms
    assert both.whole.macs == large.whole.macs
    for path, price in both.steps.items():
        assert price.latency_ms == large.steps[path].latency_ms
        assert price.latencies == (small.steps[path].latency_ms,)
    assert both.fixed.latencies == (pytest.approx(small.fixed.latency_ms),)
    [span] = [span for span in find_spans(both.graph, both.segments, 2) if (span.start, span.stop) == (1, 3)]
    assert both.span(span).latencies == (pytest.approx(small.span(span).latency_ms),)
    for key, price in both.candidates.items():
        assert price.latencies == (small.candidates[key].latency_ms,)
    # Another run finds all of it, and the tables of one batch size are found by a run at both.
    asked = sum(len(clock.asked) for clock in clocks)
    prices(clock=SeveralBatchSizes(clocks), shelf=shelf)[0].measure(others)
    prices(clock=clocks[0], shelf=shelf)[0].measure(others)
    assert sum(len(clock.asked) for clock in clocks) == asked
