"""The cheapest refit of a candidate: which maps it sets, that it helps on other samples, that it leaves no trace."""

import copy
import math
from dataclasses import replace

import footing
import pytest
import torch
from footing import batches, maker, network
from torch import nn

import networks
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.errors import NonFiniteError
from shoal.pipeline.cache import MeasurementCache
from shoal.pipeline.candidate_damage import DamageScorer
from shoal.pipeline.candidate_refit import (
    CandidateRefit,
    CandidateRefitConfig,
    removal_change,
    replacement_change,
)
from shoal.pipeline.guess_errors import guess_errors
from shoal.pipeline.pair_damage import likely_pairs
from shoal.pipeline.plan_measure import MeasuredPlan
from shoal.plan import Path, front
from shoal.preserve import evaluating, patched
from shoal.replace import ReplacementSpec, build_segments, find_spans, fit_all, refit_
from shoal.surgery import remove_blocks


@pytest.fixture(scope="module")
def graph():
    return analyze(network(), batches(12, 3, 8, 8)[0].take(2))


@pytest.fixture(scope="module")
def small():
    """A small table, and what made it."""
    builder = maker(kinds=("conv3",), longest=1)
    return builder, builder.build()


def refit_of(graph, data, **config):
    return CandidateRefit(graph, build_segments(graph), data, CandidateRefitConfig(**config))


def answers(graph, forwards, x):
    with evaluating(graph.model), patched(dict(forwards)):
        return graph.model(x)


def error(graph, forwards, x):
    with evaluating(graph.model):
        original = graph.model(x)
    return float((answers(graph, forwards, x) - original).square().mean())


DATA = batches(40, 3, 8, 8, count=3)
HELD = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(77))


def test_a_removal_is_made_good_on_samples_held_back_and_more_maps_make_more_good(graph):
    change = removal_change(graph, build_segments(graph), 1)
    errors = [
        error(graph, refit_of(graph, DATA, maps=maps, head=head).refitted([change]).forwards, HELD)
        for maps, head in ((0, False), (1, False), (2, False), (2, True))
    ]
    assert errors[0] == pytest.approx(error(graph, change.forwards, HELD))
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < errors[1]
    assert errors[3] < errors[2]


def test_with_every_map_it_is_the_whole_refit(graph):
    """The same algebra as `refit_`, there on a network that was cut for good."""
    segments = build_segments(graph)
    refit = refit_of(graph, DATA, maps=99, samples=1000, rows_per_unknown=1e6, ridges=(1e-4,))
    cheap = refit.refitted([removal_change(graph, segments, 3)])
    cut = remove_blocks(network(), DATA[0].take(2), [segments.paths[3]])
    whole = refit_(graph, cut, [], DATA, removed=[segments.paths[3]])
    with torch.no_grad():
        truth = whole.eval()(HELD) - graph.model(HELD)
    raw = error(graph, removal_change(graph, segments, 3).forwards, HELD)
    assert error(graph, cheap.forwards, HELD) == pytest.approx(float(truth.square().mean()), rel=0.25, abs=0.02 * raw)


def test_the_network_is_as_before(graph):
    before = copy.deepcopy(graph.model.state_dict())
    forwards = {name: module.__dict__.get("forward") for name, module in graph.model.named_modules()}
    refit_of(graph, DATA).refitted([removal_change(graph, build_segments(graph), 0)])
    assert all(torch.equal(before[key], value) for key, value in graph.model.state_dict().items())
    assert forwards == {name: module.__dict__.get("forward") for name, module in graph.model.named_modules()}
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in graph.model.modules())


def test_a_replacement_behind_another_change_is_fitted_to_what_enters_it(graph):
    segments = build_segments(graph)
    span = next(span for span in find_spans(graph, segments, 1) if span.start == 3)
    fitted = fit_all(graph, DATA, [ReplacementSpec(span, "conv3")])[0]
    first, second = removal_change(graph, segments, 1), replacement_change(graph.model, fitted)
    refit = refit_of(graph, DATA, maps=0, head=False)
    both = refit.refitted([first, second]).forwards
    assert error(graph, both, HELD) < 0.9 * error(graph, {**first.forwards, **second.forwards}, HELD)


class Head(nn.Module):
    """Two blocks in front of a head that is refitted, or not."""

    def __init__(self, width=4, classes=3, tied=False):
        super().__init__()
        self.layers = nn.ModuleList(networks.PreactBlock(width) for _ in range(2))
        self.head = nn.Linear(width, classes)
        self.tied = tied

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        x = self.head(x.mean((2, 3)))
        return self.head(x) if self.tied else x


@pytest.mark.parametrize(("tied", "classes"), [(False, 3), (True, 4)])
def test_a_head_that_is_read_twice_is_left_alone(tied, classes):
    torch.manual_seed(0)
    graph = analyze(Head(classes=classes, tied=tied).eval(), Batch((torch.randn(2, 4, 6, 6),)))
    refit = CandidateRefit(graph, build_segments(graph), batches(16, 4, 6, 6))
    assert (refit.head is None) == tied
    assert "the last layer" in refit.description or tied


def test_nothing_to_refit_on_is_said():
    builder = maker(kinds=("identity",), longest=1, refit=CandidateRefitConfig(samples=1))
    tables = builder.build()
    assert all(edge.damage == edge.raw_damage for edge in tables.edges)
    assert tables.pairs == []
    assert any("those without a refit" in note for note in tables.notes)


def test_a_change_that_cannot_be_refitted_counts_as_it_is(monkeypatch):
    real = CandidateRefit.refitted

    def fails(self, changes):
        if changes[0].name.startswith("remove layer1.0"):
            raise NonFiniteError("NaN", "")
        return real(self, changes)

    monkeypatch.setattr(CandidateRefit, "refitted", fails)
    tables = maker(kinds=("identity",), longest=1).build()
    edges = {name: tables.edges[index] for index, name in tables.change_names.items()}
    assert edges["remove layer1.0"].damage == edges["remove layer1.0"].raw_damage
    assert edges["remove layer1.1"].damage < edges["remove layer1.1"].raw_damage
    assert any("1 of 6 changes could not be refitted" in note for note in tables.notes)


def test_what_was_measured_is_not_measured_again(tmp_path, monkeypatch):
    first = maker(shelf=MeasurementCache(tmp_path / "t", {}), kinds=("conv3",), longest=1).build()
    monkeypatch.setattr(CandidateRefit, "refitted", lambda self, changes: pytest.fail("measured again"))
    monkeypatch.setattr(DamageScorer, "__call__", lambda *args: pytest.fail("measured again"))
    again = maker(shelf=MeasurementCache(tmp_path / "t", {}), kinds=("conv3",), longest=1).build()
    assert again.edges == first.edges
    assert again.pairs == first.pairs
    assert first.pairs


def test_an_interrupted_table_resumes(tmp_path, monkeypatch, small):
    real, count = CandidateRefit.refitted, []

    def interrupted(self, changes):
        count.append(changes)
        if len(count) == 5:
            raise KeyboardInterrupt
        return real(self, changes)

    monkeypatch.setattr(CandidateRefit, "refitted", interrupted)
    monkeypatch.setattr("shoal.pipeline.candidate_damage._HELD", 0)
    with pytest.raises(KeyboardInterrupt):
        maker(shelf=MeasurementCache(tmp_path / "t", {}), kinds=("conv3",), longest=1).build()
    monkeypatch.setattr(CandidateRefit, "refitted", real)
    resumed = maker(shelf=MeasurementCache(tmp_path / "t", {}), kinds=("conv3",), longest=1).build()
    assert [edge.damage for edge in resumed.edges] == pytest.approx([edge.damage for edge in small[1].edges], rel=1e-6)


def test_the_damage_of_a_pair_is_that_of_both_changes_refitted(small):
    builder, tables = small
    pair = next(pair for pair in tables.pairs if pair.damage > 0)
    refit = CandidateRefit(builder.graph, tables.segments, builder.fit, builder.refit)
    removals = {f"remove {path}": i for i, path in enumerate(tables.segments.paths)}
    changes = []
    for index in (pair.first, pair.second):
        if index in tables.fitted_by_edge:
            changes.append(replacement_change(builder.graph.model, tables.fitted_by_edge[index]))
        else:
            changes.append(removal_change(builder.graph, tables.segments, removals[tables.change_names[index]]))
    forwards = refit.refitted(changes).forwards
    damages = []
    with evaluating(builder.graph.model):
        for batch in builder.judge:
            original = builder.graph.model(*batch.args)
            with patched(forwards):
                damages.append(builder.damage(original, builder.graph.model(*batch.args), batch))
    together = float(torch.cat(damages).mean())
    alone = tables.edges[pair.first].damage + tables.edges[pair.second].damage
    assert pair.damage == pytest.approx(together - alone, rel=1e-3, abs=1e-9)
    guess = tables.guess((pair.first, pair.second))
    assert guess.refitted == pytest.approx(alone)
    assert guess.corrected == pytest.approx(together, rel=1e-3)


def test_how_far_guesses_are_off_is_measured_on_refitted_plans(small):
    _, tables = small
    changes = [index for index, edge in enumerate(tables.edges) if edge.action != "keep"][:5]
    plans = [
        MeasuredPlan(
            Path(edges=(index,), damage=0, latency_ms=0, macs=0, params=0, depth=0),
            1.0,
            1.0,
            1.0,
            refit_damage=2 * tables.edges[index].damage,
        )
        for index in changes
    ]
    errors = guess_errors(tables, [*plans, replace(plans[0], refit_damage=math.inf)])
    assert errors.n == 5
    assert errors.refitted.median_log_ratio == pytest.approx(math.log(2))
    assert errors.refitted.spearman == pytest.approx(1.0)
    assert errors.corrected == errors.refitted
    raw = [abs(math.log(tables.edges[index].raw_damage / tables.edges[index].damage / 2)) for index in changes]
    assert errors.raw.median_log_ratio == pytest.approx(sorted(raw)[2])
    assert guess_errors(tables, plans[:2]).refitted.spearman is None
    assert guess_errors(tables, []) is None


def test_a_front_with_pairs_has_no_point_that_is_no_better_than_a_cheaper_one(small):
    _, tables = small
    paths = front(tables.edges, 6, points=8)
    corrected = tables.corrected(paths)
    damages = [path.damage for path in corrected]
    assert corrected[0].edges == paths[0].edges
    assert damages == sorted(damages, reverse=True)
    assert all(path.damage == tables.guess(path.edges).corrected for path in corrected)


def test_likely_pairs_are_close_together_and_change_something(small):
    _, tables = small
    pairs = likely_pairs(tables.edges, 6, 20)
    assert 0 < len(pairs) <= 20
    for first, second in pairs:
        ahead, behind = tables.edges[first], tables.edges[second]
        assert "keep" not in (ahead.action, behind.action)
        assert 0 <= behind.start - ahead.stop <= 2


def test_plain_chains_and_tokens_are_refitted_too():
    plain = maker(footing.plain(), kinds=("linear",), longest=1).build()
    torch.manual_seed(0)
    tokens = maker(networks.NumberedNet(8).eval(), shape=(12, 5, 4), kinds=("linear",), longest=1).build()
    for tables in (plain, tokens):
        changed = [edge for edge in tables.edges if edge.action != "keep"]
        assert sum(edge.damage < 0.95 * edge.raw_damage for edge in changed) > len(changed) / 3


def test_a_refit_that_does_harm_is_not_made():
    tables = maker(longest=1, kinds=("conv3",), refit=CandidateRefitConfig(samples=4, ridges=(0.0,))).build()
    assert all(edge.damage <= edge.raw_damage for edge in tables.edges)


def test_without_a_refit_the_table_is_as_it_was():
    tables = maker(longest=1, kinds=("conv3",), refit=None).build()
    assert all(edge.damage == edge.raw_damage for edge in tables.edges)
    assert tables.pairs == []
    assert not any("refit" in note for note in tables.notes)
