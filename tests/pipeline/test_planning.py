import copy

import pytest
import torch

import networks
import stopwatch
from shoal.batches import Batch
from shoal.blocks import dissect
from shoal.errors import NotReachedError
from shoal.measure import cost
from shoal.pipeline import planning as room
from shoal.pipeline.planning import Planner, planned_choice
from shoal.pipeline.target import Target
from shoal.plan import Remove, Replace
from shoal.surgery import remove_blocks_
from shoal.surgery.replace import replace_spans_


def batches(*shape, count=2, first=0):
    return [
        Batch((torch.randn(*shape, generator=torch.Generator().manual_seed(seed)),))
        for seed in range(first, first + count)
    ]


def network():
    torch.manual_seed(0)
    return networks.randomised(networks.CifarResNet(2, widths=(4, 8, 16)))


def planner(target, model=None, data=None, tables=None, **more):
    model = model if model is not None else network()
    data = data or batches(12, 3, 8, 8)
    shape = data[0].args[0].shape
    anatomy = dissect(copy.deepcopy(model), data[0].take(2))
    return Planner(anatomy, model, target, data, batches(*shape, first=9), data[0], tables=tables, **more)


@pytest.fixture(autouse=True)
def _fake_clock(monkeypatch):
    stopwatch.install(monkeypatch)


@pytest.fixture(scope="module")
def tables():
    """The tables of the network: they do not depend on the budget."""
    with pytest.MonkeyPatch.context() as patch:
        stopwatch.install(patch)
        one = planner(Target(latency=1.0))
        one.plan()
        return one.tables


def price(model, data):
    return stopwatch.milliseconds(model, data), cost(model, data.take(1))


@pytest.mark.parametrize("share", [0.9, 0.6, 0.4, 0.25])
@pytest.mark.parametrize("name", ["latency", "macs", "params"])
def test_budgets_are_met_by_the_network_that_comes_out(name, share, tables):
    one = planner(Target(**{name: share}), tables=tables)
    planned = one.plan()
    assert planned.reached
    (ms, before), (cut_ms, after) = (price(model, one.timed) for model in (network(), planned.model))
    had, has = {
        "latency": (ms, cut_ms / 1.01),
        "macs": (before.macs, after.macs),
        "params": (before.params, after.params),
    }[name]
    assert has <= share * had * (1 + 1e-6)
    assert planned.whole_ms == pytest.approx(ms)
    assert planned.measured_ms == pytest.approx(cut_ms)
    assert f"{100 * cut_ms / ms:.1f} % of the original's latency" in planned.message


def test_budgets_hold_together(tables):
    planned = planner(Target(latency=0.7, params=0.5), tables=tables).plan()
    before, after = (price(model, batches(12, 3, 8, 8)[0]) for model in (network(), planned.model))
    assert after[0] <= 0.7 * 1.01 * before[0]
    assert after[1].params <= 0.5 * before[1].params


def test_all_of_the_budget_changes_nothing(tables):
    one = planner(Target(latency=1.0), tables=tables)
    planned = one.plan()
    assert planned.actions == []
    assert planned.damage == 0
    assert planned.message == "nothing changed; 100.0 % of the original's latency"


def test_a_smaller_budget_does_more_damage(tables):
    damages = [planner(Target(macs=share), tables=tables).plan().damage for share in (0.8, 0.5, 0.2)]
    assert damages == sorted(damages)
    assert damages[0] < damages[-1]


def test_the_damage_is_that_of_the_network(tables):
    one = planner(Target(latency=0.5), tables=tables)
    planned = one.plan()
    assert planned.damage == pytest.approx(one.damage_of(planned.model))
    assert planned.damage > 0


@pytest.mark.parametrize("target", [Target(latency=0.6), Target(macs=0.3)])
def test_the_actions_rebuild_the_same_network(target, tables):
    planned = planner(target, tables=tables).plan()
    assert planned.actions
    anatomy = dissect(network(), batches(2, 3, 8, 8)[0])
    replace_spans_(anatomy, [one for one in planned.actions if isinstance(one, Replace)])
    again = remove_blocks_(anatomy, [one.path for one in planned.actions if isinstance(one, Remove)]).eval()
    again.load_state_dict(planned.model.state_dict())
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(again(x), planned.model(x))


def test_the_same_data_give_the_same_plan():
    one, other = (planner(Target(latency=0.5)).plan() for _ in range(2))
    assert one.actions == other.actions
    assert (one.damage, one.message, one.points, one.notes) == (other.damage, other.message, other.points, other.notes)
    torch.testing.assert_close(one.model.state_dict(), other.model.state_dict(), rtol=0, atol=0)


def test_the_users_model_and_random_state_stay_as_they_were():
    model = network().train()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    planned = planner(Target(latency=0.5), model).plan()
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(part.training for part in model.modules())
    assert torch.equal(random, torch.get_rng_state())
    own = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert not own & {tensor.data_ptr() for tensor in planned.model.state_dict().values()}


def slow(share):
    """A clock by which every other network takes `share` of the original's time."""
    return lambda models, batch, **_: {
        name: stopwatch.taking(1.0 if name == "whole" else share, batch.size) for name in models
    }


def test_what_could_be_reached_is_said_where_the_tables_promised_too_much(tables, monkeypatch):
    monkeypatch.setattr(room, "latency", slow(0.9))
    planned = planner(Target(latency=0.7), tables=tables).plan()
    assert not planned.reached
    assert planned.message.endswith("90.0 % of the original's latency, asked for 70.0 %")


def test_a_plan_that_proves_too_slow_is_solved_again_with_less(tables, monkeypatch):
    measured = []

    def half_as_good(models, batch, **_):
        """What the tables count as saved is saved by half at first, and wholly by smaller networks."""
        whole, cut = (stopwatch.milliseconds(models[name], batch) for name in ("whole", "cut"))
        share = cut / whole if cut < 0.6 * whole else (1 + cut / whole) / 2
        measured.append(share)
        return {"whole": stopwatch.taking(1.0), "cut": stopwatch.taking(share)}

    monkeypatch.setattr(room, "latency", half_as_good)
    planned = planner(Target(latency=0.7), tables=tables).plan()
    assert planned.reached
    assert len(measured) > 1
    assert measured[0] > 0.7 * 1.01
    assert measured[-1] <= 0.7 * 1.01


def test_the_fastest_is_named_where_no_plan_meets_the_budget(tables):
    with pytest.raises(NotReachedError) as caught:
        planner(Target(latency=1e-4), tables=tables).plan()
    assert "no plan meets the budget: by the tables, the fastest takes " in caught.value.message
    said = float(caught.value.message.split("takes ")[1].split(" %")[0])
    least = planner(Target(latency=(said + 1) / 100), tables=tables).plan()
    assert least.measured_ms <= (said + 1) / 100 * least.whole_ms * 1.01


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (Target(macs=1e-4), "the one with the fewest MACs has"),
        (Target(params=1e-4), "the smallest has"),
        (Target(macs=0.01, latency=0.01), "the fastest takes .*, the one with the fewest MACs has"),
    ],
)
def test_less_than_the_rest_of_the_network_takes_cannot_be_met(target, words, tables):
    with pytest.raises(NotReachedError, match=f"no plan meets the budget: by the tables, {words}"):
        planner(target, tables=tables).plan()


def test_blocks_that_go_for_nothing_do_not_make_an_impossible_budget_possible():
    """Pre-activation blocks leave an identity: all of them gone cost nothing, and the stem is still there."""
    torch.manual_seed(0)
    model = networks.randomised(networks.PreactNet(4, 3))
    with pytest.raises(NotReachedError, match="the smallest has"):
        planner(Target(params=0.01), model, batches(12, 1, 8, 8)).plan()


def test_a_network_without_blocks_is_refused():
    torch.manual_seed(0)
    with pytest.raises(NotReachedError, match="no residual"):
        planner(Target(latency=0.5), networks.PlainNet().eval(), batches(12, 1, 8, 8)).plan()


def test_a_last_mini_batch_of_one_sample_does_no_harm():
    data = [*batches(12, 3, 8, 8), *batches(1, 3, 8, 8, count=1, first=5)]
    assert planner(Target(macs=0.5), data=data).plan().reached


def test_blocks_that_must_stay_stay():
    allowed = frozenset({"layer1.0", "layer1.1", "layer2.1"})
    planned = planner(Target(macs=0.7), allowed=allowed).plan()
    touched = {path for one in planned.actions for path in ([one.path] if isinstance(one, Remove) else one.paths)}
    assert touched
    assert touched <= allowed


def test_the_front_goes_from_the_fastest_to_the_original(tables):
    points = planner(Target(latency=0.5), tables=tables).plan().points
    assert len(points) > 5
    assert [one.latency_ms for one in points] == sorted(one.latency_ms for one in points)
    assert [one.damage for one in points] == sorted((one.damage for one in points), reverse=True)
    assert points[-1].damage == 0
    assert points[-1].latency_ms == pytest.approx(tables.whole.latency_ms)
    assert points[-1].removed == points[-1].replaced == []


def test_as_a_choice_for_the_record(tables):
    planned = planner(Target(latency=0.4), tables=tables).plan()
    choice = planned_choice(planned)
    assert choice.removed == [one.path for one in planned.actions if isinstance(one, Remove)]
    assert choice.replaced == [one.paths for one in planned.actions if isinstance(one, Replace)]
    assert (choice.reached, choice.message, choice.front) == (True, planned.message, planned.points)
    assert set(choice.worths) == set(tables.line.paths)
    assert {choice.fate_of(path) for span in choice.replaced for path in span} <= {"replaced"}
