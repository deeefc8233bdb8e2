"""Plans whose steps are units: attention or MLP of a block alone, next to whole blocks and replacements."""

from contextlib import contextmanager

import pytest
import torch
from footing import plain, planner

import halves
import language
import stopwatch
from shoal import Budget, CompressConfig, MaxDrop, ParetoPoint, RemoveBlocks, apply, compress
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.blocks.module_replacements import block_without_units, removable_units, unit_replacements
from shoal.errors import NotReachedError, UnknownBlockError, UsageError
from shoal.measure.output_reading import OutputReading, Reading
from shoal.pipeline.cache import MeasurementCache
from shoal.pipeline.candidate_table import CandidateBuilder
from shoal.pipeline.costs import CostModel
from shoal.pipeline.goals import parse_goal
from shoal.pipeline.plan_builder import PlanBuilder
from shoal.pipeline.plan_search import PlanSearch
from shoal.pipeline.unit_removals import unit_removals
from shoal.plan import Plan
from shoal.preserve import swapped
from shoal.replace import build_segments
from shoal.scanning import OutputDamage
from shoal.surgery import input_specs, signature_of
from shoal.surgery.hugging_face import attention_slots

CLASSES = OutputDamage(Reading((OutputReading("", "classes", "as the tests say"),)))
ALL = {f"blocks.{number}": (0, 1) for number in range(3)}


def builder(units=ALL, **more):
    """A table of a network of three blocks with two units each, by the fake clock."""
    fit, judge = [Batch((halves.samples(12),))], [Batch((halves.samples(12, seed=1),))]
    graph = analyze(halves.Halves().eval(), fit[0].take(2))
    cache = MeasurementCache(None, {})
    costs = CostModel(graph, build_segments(graph), fit[0], stopwatch.FakeClock(fit[0]), cache)
    more = {"kinds": ("linear",), "damage": CLASSES, **more}
    return CandidateBuilder(graph, fit, judge, costs, cache, units=units, **more)


def search(units=ALL, **more):
    made = builder(units, **more)
    plans = PlanBuilder(made.graph, made.build(), made.fit, made.judge, CLASSES)
    return PlanSearch(plans, made.costs.backend)


@pytest.fixture(scope="module")
def planned():
    return search()


def test_every_unit_is_a_step_next_to_the_whole_block(planned):
    tables = planned.tables
    removals = [[removal.name for removal in tables.removals(index)] for index in range(len(tables.edges))]
    for number, path in enumerate(ALL):
        steps = {tuple(names): tables.edges[index] for index, names in enumerate(removals) if path in "".join(names)}
        assert set(steps) == {(path,), (f"{path}#0",), (f"{path}#1",)}
        assert {edge.start for edge in steps.values()} == {number}
        assert {names: edge.depth for names, edge in steps.items()} == {
            (path,): 0,
            (f"{path}#0",): 1,
            (f"{path}#1",): 1,
        }
        whole = next(edge for edge in tables.edges if edge.action == "keep" and edge.start == number)
        assert whole.depth == 2
        # What a unit saves in parameters is its own, and all of them together are the block.
        saved = [whole.params - steps[(f"{path}#{unit}",)].params for unit in (0, 1)]
        block = planned.graph.model.get_submodule(path)
        mlp = sum(part.numel() for name, part in block.named_parameters() if name.startswith(("norm2", "fc")))
        assert saved == [whole.params - mlp, mlp]
        assert steps[(f"{path}#1",)].macs < whole.macs


def test_the_damage_of_a_unit_is_that_of_the_network_without_it(planned):
    tables, graph = planned.tables, planned.graph
    batch = planned.builder.judge[0]
    index = next(i for i, made in tables.units_by_edge.items() if made[0].name == "blocks.1#0")
    expected = halves.by_hand(graph.model, ("", "mixer", ""))
    with torch.no_grad():
        damage = CLASSES(graph.model(*batch.args), expected(*batch.args), batch).mean()
    assert tables.edges[index].raw_damage == pytest.approx(float(damage), rel=1e-5)


@pytest.mark.parametrize("depth", [6, 5, 3, 1, 0])
def test_depth_counts_units(planned, depth):
    result = planned.solve_budget(Budget(depth=depth, grain="unit"))
    left = 6
    for action in result.actions:
        left -= 2 * len(action.paths) - 1 if action.kind == "replace" else 2 if action.unit is None else 1
    assert left <= depth
    assert result.model(halves.samples()).shape == (6, 3)


def test_the_network_of_a_plan_is_that_without_its_units():
    made = search(kinds=())
    result = made.solve_budget(Budget(depth=5, grain="unit"))
    [removal] = result.actions
    without = tuple(
        ("mixer", "mlp")[removal.unit] if path == removal.path else "" for path in ("blocks.0", "blocks.1", "blocks.2")
    )
    expected = halves.by_hand(made.graph.model, without)
    cut = apply(halves.Halves().eval(), _plan(made.graph, result.actions))
    assert torch.equal(cut(halves.samples()), expected(halves.samples()))
    assert result.message.startswith("1 single unit removed")


def _plan(graph, actions):
    batch = Batch((halves.samples(2),))
    return Plan(inputs=input_specs(batch), network=signature_of(graph.model, graph.chain), actions=actions)


def test_without_units_a_plan_is_about_blocks_as_before():
    tables = builder(units=None).build()
    assert tables.units_by_edge == {}
    assert {edge.depth for edge in tables.edges} == {0, 1}


def test_only_the_units_that_may_go_go():
    made = builder(units={"blocks.0": (1,), "blocks.2": (0, 1)}, allowed=frozenset({"blocks.2"}))
    tables = made.build()
    names = {removal.name for index in range(len(tables.edges)) for removal in tables.removals(index)}
    assert names == {"blocks.0#1", "blocks.2#0", "blocks.2#1", "blocks.2"}
    with pytest.raises(NotReachedError, match="at least 3 units"):
        PlanSearch(PlanBuilder(made.graph, tables, made.fit, made.judge, CLASSES), made.costs.backend).solve_budget(
            Budget(depth=2, grain="unit")
        )


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ((), (), ALL),
        (("*.mixer",), (), dict.fromkeys(ALL, (0,))),
        (("*.fc1",), (), dict.fromkeys(ALL, (1,))),
        (("*#1",), ("blocks.0*",), {"blocks.1": (1,), "blocks.2": (1,)}),
        (("blocks.1",), (), {"blocks.1": (0, 1)}),
        ((), ("blocks.1", "*.mixer"), {"blocks.0": (1,), "blocks.2": (1,)}),
    ],
)
def test_patterns_are_about_blocks_units_and_modules(planned, include, exclude, expected):
    assert planned.graph.chain.select_units(include, exclude) == expected


def test_a_pattern_that_fits_nothing_is_refused(planned):
    with pytest.raises(UnknownBlockError, match=r"the pattern '\*.attention' matches no residual block and no unit"):
        planned.graph.chain.select_units(["*.attention"])


def test_a_block_without_a_unit_shares_the_rest(planned):
    block = planned.graph.model.blocks[1]
    variant = block_without_units(planned.graph, "blocks.1", [0])
    assert variant.fc1 is block.fc1
    assert variant.mixer is not block.mixer
    assert isinstance(block.mixer, halves.Mixer)
    assert sum(part.numel() for part in variant.parameters()) < sum(part.numel() for part in block.parameters())


def test_an_exact_proof_is_not_about_units():
    with pytest.raises(UsageError, match="the grain 'unit' goes with remove, max_drop, a budget or pick"):
        parse_goal({"exact": True, "grain": "unit"})


def neox(**changes):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    return GPTNeoXForCausalLM(GPTNeoXConfig(**{**_SIZES, "max_position_embeddings": 64, **changes})).eval()


def falcon(**changes):
    from transformers import FalconConfig, FalconForCausalLM

    torch.manual_seed(0)
    sizes = {key: value for key, value in _SIZES.items() if key != "intermediate_size"}
    return FalconForCausalLM(FalconConfig(**sizes, alibi=False, **changes)).eval()


def mixtral():
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    sizes = {**_SIZES, "num_key_value_heads": 2, "num_local_experts": 4, "max_position_embeddings": 64}
    return MixtralForCausalLM(MixtralConfig(**sizes)).eval()


_SIZES = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "llama": (language.llama, ("self_attn", "mlp")),
    "neox": (neox, ("attention", "mlp")),
    "neox in sequence": (lambda: neox(use_parallel_residual=False), ("attention", "mlp")),
    "falcon": (lambda: falcon(new_decoder_architecture=False), ("self_attention", "mlp")),
    "falcon, two norms": (lambda: falcon(new_decoder_architecture=True, num_kv_heads=2), ("self_attention", "mlp")),
    "mixtral": (mixtral, ("self_attn", "mlp")),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_decoder_layer_has_two_units(name):
    make, parts = FAMILIES[name]
    model, ids = make(), language.tokens()
    graph = analyze(model, Batch((), {"input_ids": ids}))
    block = list(graph.chain)[1]
    assert removable_units(graph, block) == [0, 1]
    for unit, part in enumerate(parts):
        stubs = unit_replacements(graph, block.path, [unit])
        assert f"{block.path}.{part}" in stubs
        assert f"{block.path}.{parts[1 - unit]}" not in stubs
        with torch.no_grad(), swapped(model, stubs):
            alone = model(input_ids=ids, use_cache=False).logits
        # The other way to be without it: its last map is zero.
        with torch.no_grad(), _silenced(model.get_submodule(f"{block.path}.{part}")):
            expected = model(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(alone, expected, rtol=1e-5, atol=1e-6)


def test_the_language_part_of_a_vision_language_model_is_planned_alone():
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    text = LlamaConfig(**_SIZES, num_key_value_heads=2, max_position_embeddings=64)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    model = LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, image_token_index=90))
    ids = language.tokens(4, 10, vocabulary=80)
    ids[:, 1:5] = 90
    inputs = {"input_ids": ids, "pixel_values": torch.randn(4, 3, 8, 8), "attention_mask": torch.ones_like(ids)}
    graph = analyze(model.eval(), Batch((), inputs).take(2))
    layers = [f"model.language_model.layers.{number}" for number in range(3)]
    assert graph.chain.select_units(["*language_model.*"]) == dict.fromkeys(layers, (0, 1))
    assert [block.path for block in graph.chain.select(["*language_model.*"])] == layers
    assert build_segments(graph).paths[-3:] == tuple(layers)
    assert build_segments(graph).is_contiguous[-2:] == (True, True)
    removals = unit_removals(graph, build_segments(graph), dict.fromkeys(layers, (0, 1)))
    assert [removal.name for removal in removals] == [f"remove {path}#{unit}" for path in layers for unit in (0, 1)]


@contextmanager
def _silenced(module):
    """Inside the context the module returns zeros."""

    def hook(module, args, output):
        return (output[0] * 0, *output[1:]) if isinstance(output, tuple) else output * 0

    handle = module.register_forward_hook(hook)
    yield
    handle.remove()


def by_parameters(model, segments, candidates, batch, **_):
    """In the place of `latency_shares`: a module takes as long as it has parameters."""
    whole = sum(part.numel() for part in model.parameters())

    def share(module):
        return (1 + sum(part.numel() for part in module.parameters())) / whole

    steps = {step.path: share(segments.module(model, step.path)) for step in segments.segments}
    return steps, {key: share(placed.module) for key, placed in candidates.items()}


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["llama", "neox", "falcon"])
def test_a_plan_of_units_keeps_the_cache_right(name, monkeypatch, tmp_path):
    stopwatch.install(monkeypatch)
    monkeypatch.setattr("shoal.pipeline.kind_timing.latency_shares", by_parameters)
    model = FAMILIES[name][0]()
    data = [{"input_ids": language.tokens(6, seed=seed)} for seed in range(3)]
    attention = f"*.{FAMILIES[name][1][0]}"
    goal = Budget(params=0.95, grain="unit", include=attention)
    result = compress(model, data, goal, config=CompressConfig(stand_ins=(), latency_seconds=0.01))
    assert result.record.removed == []
    assert result.record.removed_units
    assert all(unit.endswith("#0") for unit in result.record.removed_units)
    assert result.record.goal == {"params": 0.95, "grain": "unit", "include": [attention]}
    ids = language.tokens(2, 6)
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    with_cache, without = (result.model.generate(ids, **settings, use_cache=use) for use in (True, False))
    assert torch.equal(with_cache, without)


@pytest.mark.heavy
def test_a_span_that_is_replaced_leaves_its_slot_of_the_cache_to_the_next(monkeypatch):
    stopwatch.install(monkeypatch)
    monkeypatch.setattr("shoal.pipeline.kind_timing.latency_shares", by_parameters)
    model = language.llama(3)
    data = [{"input_ids": language.tokens(6, seed=seed)} for seed in range(3)]
    goal = Budget(params=0.95, include="model.layers.0")
    result = compress(model, data, goal, config=CompressConfig(stand_ins=("linear",), latency_seconds=0.01))
    assert result.record.replaced or result.record.removed
    [slots] = attention_slots(result.model).values()
    assert sorted(slots) == [0, 2]
    ids = language.tokens(2, 6)
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    with_cache, without = (result.model.generate(ids, **settings, use_cache=use) for use in (True, False))
    assert torch.equal(with_cache, without)


def test_folds_compete_with_removal_and_maps(planned):
    tables = search(units=None, kinds=("linear", "folded")).tables
    folds = {index: each for index, each in tables.fitted_by_edge.items() if each.kind == "folded"}
    assert folds
    by_span = {(edge.start, edge.stop): edge for edge in tables.edges if edge.action == "keep"}
    for index, fold in folds.items():
        edge = tables.edges[index]
        host = by_span[edge.start, edge.start + 1]
        assert edge.depth == 1
        assert (edge.latency_ms, edge.macs, edge.params) == (host.latency_ms, host.macs, host.params)
        assert fold.r2_held_out > 0
        assert fold.stand_in.copies == (f"blocks.{edge.start}",)
    in_units = search(kinds=("folded",)).tables
    assert {in_units.edges[index].depth for index in in_units.fitted_by_edge} == {2}


@pytest.mark.parametrize(("longest", "beyond"), [(5, (6, 7)), (6, (7,)), (2, ())])
def test_a_few_folds_reach_over_half_the_network(longest, beyond):
    """Two of each length; not where the longest span is set below the default."""
    fit, judge = [Batch((halves.samples(48),))], [Batch((halves.samples(6, seed=1),))]
    graph = analyze(halves.Halves(("",) * 12).eval(), fit[0].take(2))
    cache = MeasurementCache(None, {})
    costs = CostModel(graph, build_segments(graph), fit[0], stopwatch.FakeClock(fit[0]), cache)
    made = CandidateBuilder(graph, fit, judge, costs, cache, longest, kinds=("folded",), damage=CLASSES)
    lengths = [len(spec.span.paths) for spec in made._fold_specs()]
    assert {length: lengths.count(length) for length in lengths if length > longest} == dict.fromkeys(beyond, 2)
    assert [lengths.count(length) for length in range(2, longest + 1)] == [
        13 - length for length in range(2, longest + 1)
    ]
    if beyond == (7,):
        edges = made.build().edges
        assert sum(edge.stop - edge.start == 7 and edge.action == "replace" for edge in edges) > 0


def test_tables_made_without_folds_serve_with_them(tmp_path):
    folder = tmp_path / "tables"
    before = builder(units=None)
    before.cache = before.costs.cache = MeasurementCache(folder, {"made": "for this"})
    before.build()
    after = builder(units=None, kinds=("linear", "folded"))
    after.cache = after.costs.cache = MeasurementCache(folder, {"made": "for this"})
    first = after.build()
    again = builder(units=None, kinds=("linear", "folded"))
    again.cache = again.costs.cache = MeasurementCache(folder, {"made": "for this"})
    assert again.build().edges == first.edges
    assert any(fitted.kind == "folded" for fitted in first.fitted_by_edge.values())


def test_goals_that_plan_may_all_be_about_units():
    assert Budget(depth=3, grain="unit").grain == "unit"
    assert ParetoPoint(1, "unit").grain == MaxDrop(1.0, True, "unit").grain == RemoveBlocks(1, "unit").grain
    with pytest.raises(UsageError, match="grain is 'half', expected block or unit"):
        Budget(depth=3, grain="half")


def test_a_network_without_blocks_plans_its_layers_all_the_same():
    plan = planner(model=plain(), units={}, kinds=("identity", "linear"))
    assert plan.tables.units_by_edge == {}
