"""compress() by plan, whole: budgets, drops, numbers on the front, other clocks, other networks."""

import dataclasses
import json

import footing
import pytest
import torch
from footing import batches, network
from torch import nn

import networks
import stopwatch
from flat_options import typed
from shoal.errors import DataError, NotReachedError, SpecError, UsageError
from shoal.measure import cost
from shoal.pipeline import Budget, CompressConfig, compress
from shoal.pipeline.latency_table import latency_table
from shoal.plan import Remove, Replace
from shoal.record import Record, summary_of
from shoal.sources import load_function
from shoal.store import load
from shoal.surgery import apply

pytestmark = pytest.mark.heavy

QUICK = CompressConfig(images=36, validation_images=60, latency_seconds=0.001, stand_ins=("linear", "conv3"), longest=2)


@pytest.fixture(autouse=True)
def _fake_clock(monkeypatch):
    stopwatch.install(monkeypatch)


def data(first=0, count=3, size=12):
    return [one.args[0] for one in batches(size, 3, 8, 8, count=count, first=first)]


def planned(model=None, calibration=None, **more):
    model = model if model is not None else network()
    return compress(model, calibration or data(), **typed(**{"settings": QUICK, **more}))


def counted(model):
    return cost(model, batches(2, 3, 8, 8)[0].take(1))


@pytest.mark.parametrize(
    "goal",
    [
        {"latency": 0.5},
        {"macs": "60k"},
        {"params": "2k"},
        {"depth": 3},
        {"latency": 0.6, "macs": 0.5, "params": 0.5, "depth": 3},
    ],
)
def test_budgets_are_met_by_what_the_record_counts(goal):
    result = planned(**goal)
    record, before, after = result.record, counted(network()), counted(result.model)
    assert record.reached
    assert record.goal == goal
    assert (record.compressed.cost.macs, record.compressed.cost.params) == (after.macs, after.params)
    if "latency" in goal:
        share = record.compressed.latency[-1].median_ms / record.original.latency[-1].median_ms
        assert share <= goal["latency"] * 1.01
    limits = {"60k": 60_000, "2k": 2000}
    if "macs" in goal:
        assert after.macs <= limits.get(goal["macs"], before.macs * 0.5)
    if "params" in goal:
        assert after.params <= limits.get(goal["params"], before.params * 0.5)
    if "depth" in goal:
        assert record.compressed.blocks <= goal["depth"]
    assert record.original.blocks == 6
    assert len(record.replaced) + len(record.removed) > 0


def test_what_came_of_each_block_adds_up():
    record = planned(macs=0.5).record
    actions = {block.path: block.action for block in record.blocks}
    replaced = [path for span in record.replaced for path in span.split(" + ")]
    assert {path for path, action in actions.items() if action == "replaced"} == set(replaced)
    assert {path for path, action in actions.items() if action == "removed"} == set(record.removed)
    kept = sum(action == "kept" for action in actions.values())
    assert record.compressed.blocks == kept + len(record.replaced)
    assert all(block.removal_kl is not None for block in record.blocks)


def test_the_record_tells_how_the_plan_was_found_and_survives_json():
    record = planned(latency=0.5).record
    assert Record.model_validate(json.loads(record.model_dump_json())) == record
    planning = record.planning
    assert planning.latency_source == "measured"
    assert sum(one.chosen for one in planning.rounds) == 1
    assert planning.original_ms == pytest.approx(stopwatch.milliseconds(network(), batches(12, 3, 8, 8)[0]))
    assert planning.damage_final <= next(one.damage_measured for one in planning.rounds if one.chosen)
    document = summary_of(record, "out")
    assert document["replaced"] == record.replaced
    chosen = next(one for one in planning.rounds if one.chosen)
    assert document["planning"] == {
        "latency_source": "measured",
        "original_ms": planning.original_ms,
        "latency_guessed_ms": chosen.latency_guessed_ms,
        "latency_measured_ms": chosen.latency_measured_ms,
        "damage_guessed": chosen.damage_guessed,
        "damage_measured": chosen.damage_measured,
        "damage_raw": chosen.damage_raw,
        "damage_final": planning.damage_final,
        "plans_built": len(planning.rounds),
        "front": len(planning.front),
        "picked": None,
        "origin": chosen.origin,
        "budget_check": planning.budget_check.model_dump(mode="json"),
    }
    json.dumps(document, allow_nan=False)


def test_a_run_without_a_plan_has_no_planning_in_its_summary():
    assert summary_of(planned(remove=1).record, "out")["planning"] is None


def test_the_plan_rebuilds_and_what_was_saved_loads_bitwise(tmp_path):
    result = planned(latency=0.4)
    assert any(isinstance(one, Replace) for one in result.plan.actions)
    result.save(tmp_path / "o")
    x = batches(5, 3, 8, 8, first=7)[0].args[0]
    with torch.no_grad():
        expected = result.model(x)
        assert torch.equal(load(tmp_path / "o", model=network)(x), expected)
        again = apply(network(), result.plan, weights_follow=True).eval()
        again.load_state_dict(result.model.state_dict())
        assert torch.equal(again(x), expected)


@pytest.mark.parametrize("goal", [{"latency": 0.5}, {"depth": 3}])
def test_a_plain_network_goes_the_whole_way(tmp_path, goal):
    result = planned(footing.plain(), **goal)
    record = result.record
    assert record.original.blocks == 6  # four convolutions, two linear layers
    spans = [one for one in result.plan.actions if isinstance(one, Replace)]
    weighted = [one for one in result.model.modules() if isinstance(one, nn.Conv2d | nn.Linear)]
    # Where a pointwise convolution is fast enough, each layer may stay one of its own under a latency.
    assert record.compressed.blocks == len(weighted) <= goal.get("depth", 6)
    assert spans
    assert record.blocks == []
    assert record.replaced == [" + ".join(one.paths) for one in spans]
    assert "layers replaced by" in record.message
    result.save(tmp_path / "o")
    x = batches(5, 3, 8, 8, first=7)[0].args[0]
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "o", model=footing.plain)(x), result.model(x))


def test_layers_that_go_for_an_identity_are_counted_as_gone():
    settings = CompressConfig(images=36, latency_seconds=0.001, stand_ins=("identity",), longest=1)
    record = planned(footing.plain(), settings=settings, depth=5).record
    gone = len(record.replaced)  # one layer each
    assert gone >= 1
    assert (record.original.blocks, record.compressed.blocks) == (6, 6 - gone)


def labelled(model, batches_):
    with torch.no_grad():
        return [(x, model(x).argmax(1)) for x in batches_]


def test_a_drop_with_replacing_is_held_on_validation():
    model = network()
    validation = labelled(model, data(first=40, count=5))
    result = planned(model, max_drop=20.0, replace=True, validation=validation)
    record = result.record
    assert record.goal == {"max_drop": 20.0, "replace": True}
    assert record.reached
    assert record.validation.split == "validation"
    assert 0 <= record.validation.top1_drop <= 0.2
    assert record.validation.n < 60  # the first samples of validation judged the damage
    assert "within 20 points on validation" in record.message
    assert record.compressed.cost.macs < record.original.cost.macs


def test_without_replacing_a_drop_only_removes():
    result = planned(max_drop=50.0)
    assert all(isinstance(one, Remove) for one in result.plan.actions)
    assert result.record.planning is None


def test_a_number_picks_that_point_of_the_front_of_the_record(tmp_path):
    front = planned(latency=0.5, tables=tmp_path / "t").record.planning.front
    record = planned(pick=3, tables=tmp_path / "t").record
    assert record.removed == front[2].removed
    assert record.replaced == [" + ".join(span) for span in front[2].replaced]
    assert (record.planning.picked, record.goal) == (3, {"pick": 3})
    assert record.compressed.cost.macs == front[2].macs
    assert record.compressed.cost.params == front[2].params
    with pytest.raises(UsageError, match=f"there is no plan 99 on the front\n  It has {len(front)} points"):
        planned(pick=99, tables=tmp_path / "t")


def test_latencies_of_another_device_decide_and_are_named(tmp_path):
    table = latency_table(network(), batches(12, 3, 8, 8)[0])
    here = planned(latency=0.5)
    (tmp_path / "same.json").write_text(table.to_json())
    same = planned(latency=0.5, latency_from=tmp_path / "same.json").record
    assert same.planning.latency_source == "same.json (cpu, batch 12)"
    assert same.removed == here.record.removed
    document = json.loads(table.to_json())
    for one in document["entries"].values():
        if one["what"].startswith(("AffineReplacement", "ResidualReplacement")):  # stand-ins take an age there
            one["ms"] = 1e3
    (tmp_path / "other.json").write_text(json.dumps(document))
    other = planned(latency=0.5, latency_from=str(tmp_path / "other.json")).record
    assert other.replaced == []
    assert other.removed


def test_tables_of_another_network_are_refused(tmp_path):
    (tmp_path / "t.json").write_text(latency_table(footing.plain(), batches(12, 3, 8, 8)[0]).to_json())
    with pytest.raises(UsageError, match=r"has no entry for \d+ modules"):
        planned(latency=0.5, latency_from=tmp_path / "t.json")


FUNCTION = """
import torch
from torch import nn


def milliseconds(module, shape):
    assert shape[0] == 12
    return 0.1 + sum(p.numel() for p in module.parameters()) / 1000


def by_batch(module, shape):
    leaves = sum(1 for part in module.modules() if not list(part.children()) and not isinstance(part, nn.Identity))
    return 0.01 * leaves + shape[0] * sum(p.numel() for p in module.parameters()) / 100_000


def nonsense(module, shape):
    return float("nan") if isinstance(module, nn.Sequential) else 1.0


def negative(module, shape):
    return -1.0


def broken(module, shape):
    raise ZeroDivisionError("no power")
"""


def test_a_function_of_the_user_decides(tmp_path):
    (tmp_path / "own.py").write_text(FUNCTION)
    result = planned(latency=0.5, latency_from=f"{tmp_path}/own.py:milliseconds")
    planning = result.record.planning
    assert planning.latency_source == "own.py:milliseconds"
    assert planning.original_ms == pytest.approx(0.1 + result.record.original.cost.params / 1000)
    chosen = next(one for one in planning.rounds if one.chosen)
    assert chosen.latency_measured_ms == pytest.approx(0.1 + counted(result.model).params / 1000, rel=0.02)
    assert chosen.latency_measured_ms <= 0.505 * planning.original_ms


@pytest.mark.slow
def test_a_budget_of_latency_holds_at_every_batch_size(tmp_path):
    (tmp_path / "own.py").write_text(FUNCTION)
    spec = f"{tmp_path}/own.py:by_batch"
    timed, shares = load_function(spec), {}
    for sizes in ((24,), (24, 1)):
        settings = dataclasses.replace(QUICK, latency_batch_sizes=sizes)
        result = planned(settings=settings, latency=0.6, latency_from=spec)
        check = result.record.planning.budget_check
        shares[sizes] = [timed(result.model, (size, 3, 8, 8)) / timed(network(), (size, 3, 8, 8)) for size in (24, 1)]
        assert [ratio.batch for ratio in check.ratios] == list(sizes)
        assert [ratio.ratio for ratio in check.ratios] == pytest.approx(shares[sizes][: len(sizes)])
        assert (result.record.reached, check.met) == (True, True)
        assert [one.batch for one in result.record.compressed.latency] == [1, 24]  # 12 samples, repeated
    assert shares[24,][1] > 0.6 * 1.02  # at batch 1 it takes more than the budget, where nobody asked
    assert max(shares[24, 1]) <= 0.6 * 1.02


def test_batch_sizes_that_a_table_or_an_amount_does_not_know_are_refused(tmp_path):
    (tmp_path / "t.json").write_text(latency_table(network(), batches(12, 3, 8, 8)[0]).to_json())
    for sizes in ((1, 12), (8,)):
        settings = dataclasses.replace(QUICK, latency_batch_sizes=sizes)
        with pytest.raises(
            UsageError, match=r"t.json holds batch 12, asked for are the batch sizes .*\n.*one batch size"
        ):
            planned(settings=settings, latency=0.5, latency_from=tmp_path / "t.json")
    with pytest.raises(UsageError, match=r"latency is '12ms', at the batch sizes 12, 1\n.*fraction"):
        planned(settings=dataclasses.replace(QUICK, latency_batch_sizes=(1, 12)), latency="12ms")


@pytest.mark.parametrize(
    ("name", "words"),
    [("nonsense", "returned nan"), ("negative", "returned -1"), ("broken", "raised ZeroDivisionError .*no power")],
)
def test_a_function_that_fails_is_refused(tmp_path, name, words):
    (tmp_path / "own.py").write_text(FUNCTION)
    with pytest.raises(SpecError, match=words):
        planned(latency=0.5, latency_from=f"{tmp_path}/own.py:{name}")


@pytest.mark.slow
def test_the_same_seed_and_clock_give_the_same_plan():
    one, other = planned(latency=0.5), planned(latency=0.5)
    assert one.plan == other.plan
    assert one.record.planning == other.record.planning
    assert one.record.comparison == other.record.comparison
    torch.testing.assert_close(one.model.state_dict(), other.model.state_dict(), rtol=0, atol=0)


def test_half_precision_stays_half_precision():
    result = planned(network().to(torch.bfloat16), [x.to(torch.bfloat16) for x in data()], macs=0.5)
    assert any(isinstance(one, Replace) for one in result.plan.actions)
    assert {tensor.dtype for tensor in result.model.parameters()} == {torch.bfloat16}
    assert result.record.reached
    assert result.record.planning.damage_final >= 0


def test_a_damage_of_the_users_own_is_minimised():
    called = []

    def squared(original, output, batch):
        called.append(batch.target is not None)
        return (original.softmax(1) - output.softmax(1)).square().sum(1)

    result = planned(macs=0.5, damage=squared, calibration=labelled(network(), data()))
    planning = result.record.planning
    assert called
    assert all(called)  # labels are there, no blends
    assert 0 < planning.damage_final < 2
    assert result.record.blocks[0].removal_kl < 2


class Rigid(nn.Module):
    """One linear layer, called twice: neither a block nor a step."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(4, 4)

    def forward(self, x):
        return self.one(torch.tanh(self.one(x)))


def test_a_network_with_nothing_to_plan_is_refused(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(12, 4)
    with pytest.raises(NotReachedError, match="no residual block"):
        compress(Rigid(), [x], Budget(latency=0.5), config=CompressConfig.of(QUICK, tables=tmp_path / "t"))
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("size", [3, 4, 8])
def test_one_small_mini_batch_is_enough(size):
    result = planned(calibration=data(count=1, size=size), macs=0.7)
    assert result.record.reached


def test_two_samples_are_enough_only_with_validation():
    with pytest.raises(DataError, match="2 calibration samples, expected at least 3"):
        planned(calibration=data(count=1, size=2), macs=0.7)
    assert planned(calibration=data(count=1, size=2), validation=data(count=1, first=5), macs=0.7).record.reached
    with pytest.raises(DataError, match="at least 2 samples"):
        planned(calibration=data(count=1, size=1), validation=data(count=1, first=5), macs=0.7)


def test_a_goal_goes_with_replacing_only_by_plan():
    for goal in ({"remove": 1}, {"exact": True}, {"blocks": ["layer1.0"]}):
        with pytest.raises(UsageError, match="replace goes with max_drop or a budget"):
            planned(replace=True, **goal)
    for goal in ({"pick": 1, "latency": 0.5}, {"pick": 1, "max_drop": 1.0}, {"latency": 0.5, "remove": 1}):
        with pytest.raises(UsageError, match="give exactly one of"):
            planned(**goal)


def test_folding_comes_behind_the_plan(tmp_path):
    result = planned(macs=0.5, fold=True)
    assert result.record.folded
    assert result.record.compressed.blocks < 6
    result.save(tmp_path / "o")
    x = batches(5, 3, 8, 8, first=7)[0].args[0]
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "o", model=network)(x), result.model(x))


def test_tokens_are_planned_too():
    torch.manual_seed(0)
    x = [torch.randn(12, 5, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    record = planned(networks.NumberedNet(8).eval(), x, macs=0.6).record
    assert record.reached
    assert record.compressed.cost.macs <= 0.6 * record.original.cost.macs


@pytest.mark.slow
def test_resnet50_of_torchvision_goes_the_whole_way(tmp_path):
    torchvision = pytest.importorskip("torchvision")

    def build():
        torch.manual_seed(0)
        return torchvision.models.resnet50(weights=None).eval()

    x = [torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    settings = CompressConfig(images=24, latency_seconds=0.01, stand_ins=("linear", "lowrank1/4"), longest=3)
    result = compress(build(), x, Budget(macs=0.6), config=settings)
    record = result.record
    assert record.reached
    assert record.original.blocks == 16
    assert record.compressed.cost.macs <= 0.6 * record.original.cost.macs
    assert record.compressed.blocks == 16 - sum(b.action != "kept" for b in record.blocks) + len(record.replaced)
    result.save(tmp_path / "o")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "o", model=build)(x[0]), result.model(x[0]))
