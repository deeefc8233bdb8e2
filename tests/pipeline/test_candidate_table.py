import footing
import pytest
import torch
from footing import batches, maker, network
from torch import nn

import networks
import stopwatch
from elsewhere import Elsewhere
from shoal.errors import NonFiniteError
from shoal.measure import kl_per_sample, log_probabilities
from shoal.pipeline.candidate_table import enumerate_candidates, timed_modules
from shoal.replace import REPLACEMENTS, build_replacement, build_segments, find_spans
from shoal.surgery import remove_blocks
from shoal.workers import LocalWorkers


@pytest.fixture(scope="module")
def made():
    one = maker()
    return one, one.build()


def kl(original, other, judged):
    """Mean KL over the mini-batches of two networks that are run whole."""
    with torch.no_grad():
        parts = [kl_per_sample(log_probabilities(original(x), None), other(x)) for x in (b.args[0] for b in judged)]
    return float(torch.cat(parts).mean())


def test_keeping_everything_costs_what_the_whole_costs(made):
    _, tables = made
    keeps = [one for one in tables.edges if one.action == "keep"]
    assert [(one.start, one.stop, one.depth) for one in keeps] == [(i, i + 1, 1) for i in range(6)]
    assert {one.damage for one in keeps} == {0.0}
    for name in ("latency_ms", "macs", "params"):
        total = sum(getattr(one, name) for one in keeps) + getattr(tables.fixed, name)
        assert total == pytest.approx(getattr(tables.whole, name))
        assert 0 < getattr(tables.fixed, name) < getattr(tables.whole, name)
    assert tables.whole.params == sum(one.numel() for one in network().parameters())


def test_damage_of_a_removal_is_that_of_the_network_cut_for_good(made):
    one, tables = made
    removals = [edge for edge in tables.edges if edge.action == "remove"]
    assert len(removals) == 6
    for edge in removals:
        cut = remove_blocks(network(), one.fit[0].take(2), [tables.segments.paths[edge.start]])
        assert edge.raw_damage == pytest.approx(kl(network(), cut, one.judge), rel=1e-5)
        assert edge.damage > 0
        assert edge.depth == 0


def test_damage_of_a_stand_in_is_that_of_the_network_with_it_in_place(made):
    one, tables = made
    assert tables.fitted_by_edge
    for index, fitted in list(tables.fitted_by_edge.items())[::4]:
        edge, model = tables.edges[index], network()
        assert (edge.action, edge.kind, edge.depth) == ("replace", fitted.kind, int(fitted.kind != "identity"))
        assert (edge.start, edge.stop) == (fitted.span.start, fitted.span.stop)
        model.set_submodule(fitted.span.paths[0], fitted.module)
        for path in fitted.span.paths[1:]:
            model.set_submodule(path, nn.Identity())
        assert edge.raw_damage == pytest.approx(kl(network(), model, one.judge), rel=1e-5)


def test_worths_are_those_of_the_removals_with_an_interval(made):
    _, tables = made
    assert [worth.path for worth in tables.removal_damages] == list(tables.segments.paths)
    for worth in tables.removal_damages:
        low, high = worth.interval
        assert low <= worth.damage <= high
        assert worth.n == 24


def test_stand_ins_are_cheaper_than_their_span_in_something(made):
    _, tables = made
    keeps = {edge.start: edge for edge in tables.edges if edge.action == "keep"}
    spans = {(edge.start, edge.stop) for index, edge in enumerate(tables.edges) if index in tables.fitted_by_edge}
    assert (0, 1) in spans
    for index in tables.fitted_by_edge:
        edge = tables.edges[index]
        assert any(
            getattr(edge, name) < sum(getattr(keeps[number], name) for number in range(edge.start, edge.stop))
            for name in ("latency_ms", "macs", "params")
        )


class Slow(stopwatch.FakeClock):
    """Linear maps take an age."""

    def time_modules(self, group, shape):
        slow = {key for key, one in group.items() if isinstance(one, nn.Sequential) and _pointwise(one[0])}
        return {key: 1e6 if key in slow else ms for key, ms in super().time_modules(group, shape).items()}


def _pointwise(layer):
    return isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)


def test_a_stand_in_that_costs_no_less_in_anything_is_not_fitted():
    torch.manual_seed(0)
    model = networks.randomised(networks.PreactNet(4, 2))
    tables = maker(model, (12, 1, 8, 8), kinds=("conv5", "conv3"), longest=1).build()
    assert {one.kind for one in tables.fitted_by_edge.values()} == {"conv3"}  # 25 weights a channel pair against 18


def test_of_the_stand_ins_for_a_span_a_slow_one_stays_only_if_it_fits_better():
    slow = maker(longest=1, kinds=("linear", "conv3"), clock=Slow(batches(12, 3, 8, 8)[0])).build()
    both = maker(longest=1, kinds=("linear", "conv3")).build()
    assert {one.kind for one in both.fitted_by_edge.values()} == {"linear", "conv3"}
    by_span = {(one.span.name, one.kind): one for one in both.fitted_by_edge.values()}
    for one in slow.fitted_by_edge.values():
        if one.kind == "linear":  # in the table though slow
            assert one.r2_held_out >= by_span[one.span.name, "conv3"].r2_held_out
    assert sum(one.kind == "linear" for one in slow.fitted_by_edge.values()) < 6


def test_no_span_is_longer_than_asked():
    tables = maker(longest=2, kinds=("linear",)).build()
    assert {one.stop - one.start for one in tables.edges} == {1, 2}
    assert {one.kind for one in tables.fitted_by_edge.values()} == {"linear"}


def test_excluded_blocks_are_never_touched():
    allowed = frozenset({"layer1.0", "layer1.1", "layer2.1", "layer3.0"})
    tables = maker(allowed=allowed).build()
    touched = set()
    for edge in tables.edges:
        if edge.action != "keep":
            touched |= set(tables.segments.paths[edge.start : edge.stop])
    assert touched == allowed
    assert all(set(one.span.paths) <= allowed for one in tables.fitted_by_edge.values())
    assert sum(edge.action == "keep" for edge in tables.edges) == 6
    assert len(tables.removal_damages) == 6


def test_tokens_get_linear_maps():
    torch.manual_seed(0)
    tables = maker(networks.NumberedNet(8).eval(), shape=(12, 5, 4), kinds=("linear", "conv3")).build()
    assert {one.kind for one in tables.fitted_by_edge.values()} == {"linear"}
    assert len(tables.fitted_by_edge) == 6


def test_an_identity_costs_its_activation_and_has_no_depth():
    tables = maker(footing.plain(), kinds=("identity",)).build()
    edges = [tables.edges[index] for index in tables.fitted_by_edge]
    assert edges
    assert {(one.macs, one.params, one.depth) for one in edges} == {(0.0, 0.0, 0)}
    assert all(one.latency_ms > 0 for one in edges)


def test_pooling_has_no_depth_and_no_stand_in_of_its_own():
    tables = maker(footing.plain(), kinds=("linear", "conv3")).build()
    keeps = [edge for edge in tables.edges if edge.action == "keep"]
    assert [edge.depth for edge in keeps] == [1, 1, 0, 1, 1, 0, 1, 1]
    assert not [edge for edge in tables.edges if edge.action == "remove"]
    assert (2, 3) not in {(edge.start, edge.stop) for edge in tables.edges if edge.action == "replace"}
    assert tables.removal_damages == []


def test_too_little_data_is_noted():
    torch.manual_seed(0)
    model = networks.randomised(networks.CifarResNet(2, widths=(8, 16, 32)))
    tables = maker(model, shape=(2, 3, 8, 8), kinds=("conv3",)).build()
    assert any("fitted on too little data" in note for note in tables.notes)


def test_a_damage_of_the_users_own_is_taken():
    def each(original, output, batch):
        return torch.full((batch.size,), 3.0)

    tables = maker(damage=each, longest=1, kinds=("linear",)).build()
    assert {edge.damage for edge in tables.edges if edge.action != "keep"} == {3.0}


def test_nan_in_the_outputs_is_refused():
    model = network()
    with torch.no_grad():
        model.linear.bias[0] = float("nan")
    with pytest.raises(NonFiniteError, match="NaN or Inf"):
        maker(model, longest=1, kinds=("linear",)).build()


def test_the_network_stays_as_it_was(made):
    one, _ = made
    torch.testing.assert_close(one.graph.model.state_dict(), network().state_dict(), rtol=0, atol=0)
    assert not any("forward" in vars(part) for part in one.graph.model.modules())


def test_a_fitted_stand_in_can_be_built_again(made):
    _, tables = made
    for fitted in tables.fitted_by_edge.values():
        again = build_replacement(fitted.stand_in, torch.zeros(1))
        again.load_state_dict(fitted.module.state_dict())
        torch.testing.assert_close(again.state_dict(), fitted.module.state_dict(), rtol=0, atol=0)
    assert tables.fitted_by_edge


def test_maps_too_wide_to_be_fitted_are_not_wanted(monkeypatch):
    one = maker()
    spans = find_spans(one.graph, build_segments(one.graph), 1)
    assert {item.kind for item in enumerate_candidates(spans, ("linear", "conv3"))} == {"linear", "conv3"}
    monkeypatch.setattr("shoal.pipeline.candidate_table.MAX_UNKNOWNS", 30)
    assert {item.kind for item in enumerate_candidates(spans[2:], ("linear", "conv3"))} == {"linear"}


def test_everything_that_a_plan_could_need_the_time_of_is_named():
    one = maker()
    line = build_segments(one.graph)
    named = timed_modules(one.graph, line, tuple(REPLACEMENTS), 2)
    assert set(line.paths) < set(named)
    assert "conv3 layer1.0..layer1.1" in named
    assert "linear layer1.0..layer2.0" not in {name for name in named if name.count("layer") > 2}
    assert named["layer2.0"].shape == (4, 8, 8)


def test_the_tables_are_the_very_same_whoever_works_in_whatever_order():
    options = {"kinds": ("conv3",), "longest": 1}
    here, there = (maker(workers=workers, **options).build() for workers in (LocalWorkers(), Elsewhere()))
    assert there.edges == here.edges
    assert there.pairs == here.pairs
    assert there.pairs
    for index, fitted in here.fitted_by_edge.items():
        for name, value in fitted.module.state_dict().items():
            assert torch.equal(there.fitted_by_edge[index].module.state_dict()[name], value)
