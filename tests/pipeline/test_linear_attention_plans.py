"""Plans that leave a linear map of an attention: from the table to a folder that servers read."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

import language
from shoal import Budget, CompressConfig, apply, compress, load
from shoal.batches import Batch, like_of
from shoal.blocks import analyze
from shoal.errors import PlanError
from shoal.pipeline import candidate_table
from shoal.pipeline.cache import MeasurementCache
from shoal.pipeline.candidate_table import CandidateBuilder
from shoal.pipeline.costs import CostModel
from shoal.pipeline.latency_backends import EstimatedLatency
from shoal.replace import build_segments
from shoal.store.export import export

LAYERS = [f"model.layers.{index}" for index in range(4)]
ATTENTIONS = [f"{path}.self_attn" for path in LAYERS]


def same_tokens(count, seed=0):
    """Texts of one token each, over and over: whatever an attention does to them is a linear map of the token."""
    ids = torch.randint(4, 96, (count, 1), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids.expand(count, 8).contiguous()}


@pytest.fixture(scope="module")
def made():
    data = [same_tokens(32, seed) for seed in range(3)]
    config = CompressConfig(stand_ins=("linear_attention",), latency_seconds=0.01)
    return compress(language.llama(4), data, Budget(macs=0.9), config=config)


def test_maps_take_the_place_of_attentions_where_they_do_the_same(made):
    maps = made.plan.linear_attentions
    assert made.plan.removals == []
    assert set(maps) < set(ATTENTIONS)
    assert maps
    assert f"{len(maps)} attention" in made.record.message
    assert "replaced by" in made.record.message
    assert made.record.comparison.kl < 1e-9
    assert made.record.compressed.blocks == made.record.original.blocks == 4
    assert made.record.compressed.cost.macs < 0.9 * made.record.original.cost.macs
    assert made.record.compressed.cost.params < made.record.original.cost.params


def test_their_folder_is_loaded_and_served(made, tmp_path):
    out, ids = tmp_path / "out", language.tokens(2, 9)
    made.save(out)
    note = (out / "hf-not-written.md").read_text()
    assert f"a linear map took the place of {made.plan.linear_attentions[0]}" in note
    assert "--nemotron-nas" in note
    assert f"`{made.plan.linear_attentions[0]}` replaced by a linear map" in (out / "README.md").read_text()
    again = load(out, model=lambda: language.llama(4))
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, made.model(input_ids=ids).logits)
    export(out, "nemotron_nas", model=lambda: language.llama(4))
    blocks = json.loads((out / "nemotron-nas" / "config.json").read_text())["block_configs"]
    linear = [path for path, block in zip(ATTENTIONS, blocks, strict=True) if block["attention"]["replace_with_linear"]]
    assert linear == made.plan.linear_attentions
    with pytest.raises(PlanError, match="their fitted weights are not in it"):
        apply(language.llama(4), made.plan)


def builder(cache=None, **more):
    fit, judge = [Batch(kwargs=same_tokens(12))], [Batch(kwargs=same_tokens(12, 1))]
    graph = analyze(language.llama(4), fit[0].take(2))
    cache = cache or MeasurementCache(None, {})
    costs = CostModel(graph, build_segments(graph), fit[0], EstimatedLatency(like_of(graph.model), fit[0]), cache)
    return CandidateBuilder(
        graph, fit, judge, costs, cache, **{"kinds": ("linear_attention",), "refit": None, "longest": 1, **more}
    )


def maps_of(table):
    return [fitted.stand_in.attention.module for fitted in table.fitted_by_edge.values()]


def states(table):
    return {fitted.span.name: fitted.module.state_dict() for fitted in table.fitted_by_edge.values()}


@pytest.mark.parametrize(("kind", "longest"), [("linear_attention", 1), ("folded", 2)])
def test_what_was_fitted_is_not_fitted_again_and_nothing_else_is_kept(tmp_path, monkeypatch, kind, longest):
    monkeypatch.setattr(candidate_table, "_MIN_R2", -math.inf)
    settings = {"kinds": (kind,), "longest": longest}
    first = builder(MeasurementCache(tmp_path, {}), **settings).build()
    monkeypatch.setattr(candidate_table, "fit_linear_attentions", None)
    monkeypatch.setattr(candidate_table, "fit_folded", None)
    again = builder(MeasurementCache(tmp_path, {}), **settings).build()
    torch.testing.assert_close(states(again), states(first), rtol=0, atol=0)
    assert len(states(again)) == len(LAYERS) + 1 - longest
    kept = {name.partition("/")[2] for name in load_file(tmp_path / "stand-ins-0.safetensors")}
    assert kept == {"mlp.down_proj.weight" if kind == "folded" else "self_attn.linear_attn.weight"}
    assert [edge.damage for edge in again.edges] == pytest.approx([edge.damage for edge in first.edges], abs=1e-7)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"allowed": frozenset(LAYERS[1:3])}, ATTENTIONS[1:3]),
        ({"allowed": frozenset(), "units": {LAYERS[1]: (0,), LAYERS[2]: (1,)}}, ATTENTIONS[1:2]),
        ({"depth_only": True}, []),
        ({"kinds": ("linear",)}, []),
    ],
)
def test_only_attentions_that_may_be_touched_and_of_use_are_replaced(settings, expected):
    found = builder(**settings)._linear_attentions()
    assert [spec.token_map.module for spec in found] == expected


def test_a_map_that_predicts_nothing_is_no_candidate(monkeypatch):
    fit = candidate_table.fit_linear_attentions

    def useless(*args, **more):
        fitted = fit(*args, **more)
        object.__setattr__(fitted[0], "r2_held_out", 0.01)
        return fitted

    monkeypatch.setattr(candidate_table, "fit_linear_attentions", useless)
    assert maps_of(builder().build()) == ATTENTIONS[1:]
