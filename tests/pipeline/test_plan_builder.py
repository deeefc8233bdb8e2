import copy
from dataclasses import replace

import pytest
import torch
from footing import planner

from shoal.blocks import analyze
from shoal.pipeline.plan_builder import MAX_NETWORKS
from shoal.plan import Replace
from shoal.preserve import own_
from shoal.surgery import remove_blocks_
from shoal.surgery.replace import replace_spans_


@pytest.fixture(scope="module")
def one():
    return planner(kinds=("linear", "conv3"), longest=2)


def changed(one):
    """The path that does most damage among those with stand-ins."""
    return max((path for path in one.front if one.builder.replacements(path)), key=lambda path: path.damage)


def test_building_leaves_the_original_as_it_was(one):
    before = copy.deepcopy(one.builder.graph.model.state_dict())
    one.builder.build(changed(one))
    assert all(torch.equal(value, before[name]) for name, value in one.builder.graph.model.state_dict().items())


def test_a_path_that_keeps_all_is_the_original_and_does_no_damage(one):
    builder = one.builder
    [whole] = [path for path in one.front if not builder.actions(path)]
    assert builder.damage_of(builder.build(whole)) == 0
    assert builder.refine(whole).damage == 0


def test_the_best_network_is_no_further_off_than_any_that_was_tried(one):
    builder, path = one.builder, changed(one)
    best = builder.refine(path)
    assert best.damage == pytest.approx(builder.damage_of(best.network))
    assert best.damage <= builder.damage_of(builder.build(path))
    assert "kept:" in best.note


def test_a_refit_on_a_part_mends(one):
    builder, path = one.builder, changed(one)
    assert builder.damage_of(builder.quick_refit(path)) < builder.damage_of(builder.build(path))


def test_a_network_is_bitwise_what_a_fresh_trace_leads_to(one):
    builder = one.builder
    for path in one.front:
        graph = analyze(copy.deepcopy(builder.graph.model), builder.fit[0].take(2))
        actions = builder.actions(path)
        modules = {fitted.span.paths[0]: copy.deepcopy(fitted.module) for fitted in builder.replacements(path)}
        replace_spans_(graph, [action for action in actions if isinstance(action, Replace)], modules)
        remove_blocks_(graph, [action.path for action in actions if not isinstance(action, Replace)])
        network = builder.build(path)
        assert repr(network) == repr(graph.model.eval())
        torch.testing.assert_close(network.state_dict(), graph.model.state_dict(), rtol=0, atol=0)
        x = builder.judge[0].args[0]
        assert torch.equal(network(x), graph.model(x))


def test_networks_to_look_at_are_kept_and_those_to_change_are_copies(one):
    builder, path = one.builder, changed(one)
    kept, refitted = builder.network(path), builder.quick_refit(path)
    assert builder.network(path) is kept
    assert builder.quick_refit(path) is refitted
    before = copy.deepcopy(kept.state_dict())
    with torch.no_grad():
        for parameter in own_(builder.build(path)).parameters():
            parameter.zero_()
    torch.testing.assert_close(builder.network(path).state_dict(), before, rtol=0, atol=0)


def test_few_networks_are_kept_at_a_time(one):
    builder = one.builder
    for path in one.front:
        builder.network(path)
    assert len(one.front) > MAX_NETWORKS == len(builder._networks)
    builder.refine(changed(one))
    assert not builder._networks


def test_of_large_networks_only_the_last_is_kept(one, monkeypatch):
    builder = replace(one.builder)
    monkeypatch.setattr("shoal.pipeline.plan_builder.MAX_NETWORK_BYTES", 1.0)
    first, second = (builder.network(path) for path in one.front[:2])
    assert list(builder._networks.values()) == [second]
    assert builder.network(one.front[0]) is not first
