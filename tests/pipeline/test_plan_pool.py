"""The pool of plans: all within the budget, unlike each other, and the rules that only remove always among them."""

from types import SimpleNamespace

import footing
import pytest
from footing import batches, maker, planner

import networks
import stopwatch
from shoal.errors import DataError
from shoal.pipeline import plan_baselines
from shoal.pipeline.goals import Budget
from shoal.pipeline.plan_baselines import BASELINES, Baselines, in_a_row, last, lowest, spread
from shoal.pipeline.plan_pool import GENERATORS, PlanPool, weighted
from shoal.plan import Edge, Path, Remove, Replace, ResourceLimits, solve

pytestmark = pytest.mark.heavy


def edge(start, stop, action, damage=1.0, latency=1.0):
    return Edge(start=start, stop=stop, action=action, damage=damage, latency_ms=latency, macs=1.0, params=1.0, depth=1)


@pytest.fixture(scope="module")
def tables():
    return maker(kinds=("linear", "conv3"), longest=2).build()


def pool_of(tables, goal, *, recovery=True, clock=None):
    search = planner(tables, clock=clock)
    pool = PlanPool(search.meter, search.meter.plan_budget(goal), recovery, search.builder.fit)
    pool.solve_rounds()
    pool.fill(12)
    return search, pool


def removed(search, path):
    actions = search.builder.actions(path)
    assert all(isinstance(action, Remove) for action in actions)
    return [action.path for action in actions]


ORDER = ["layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1"]


def test_a_pool_holds_every_rule_and_several_families_all_within_the_budget(tables):
    search, pool = pool_of(tables, Budget(macs=0.5))
    contenders = pool.contenders(12)
    origins = [plan.origin for plan in contenders]
    # A rule whose plan another rule or the solver has too is named in a note instead of being compared twice.
    same = {rule for rule in BASELINES if any(note.startswith(f"the plan '{rule}' is that of") for note in pool.notes)}
    assert set(origins) == {"solver", *BASELINES} - same
    assert all(origins.count(rule) == 1 for rule in set(BASELINES) - same)
    assert len(same) <= 2
    assert len({plan.generator for plan in contenders if plan.origin == "solver"}) > 1
    assert len(contenders) >= 8
    whole = search.tables.whole.macs
    for plan in contenders:
        network = search.builder.network(plan.path)
        assert stopwatch.cost(network, batches(12, 3, 8, 8)[0].take(1)).macs <= 0.5 * whole * (1 + 1e-6)
    assert [plan.family for plan in contenders[:2]] == [("solver", 0), ("most parameters", 0)]  # by turns
    actions = [tuple(str(action) for action in search.builder.actions(plan.path)) for plan in contenders]
    assert len(set(actions)) == len(actions)
    by_origin = {plan.origin: removed(search, plan.path) for plan in contenders if plan.origin != "solver"}
    assert by_origin["last-k"] == ORDER[-len(by_origin["last-k"]) :]
    if "uniform" in by_origin:
        assert [ORDER.index(path) for path in by_origin["uniform"]] == list(spread_of(by_origin["uniform"]))
    places = [ORDER.index(path) for path in by_origin["block influence"]]
    assert places == list(range(places[0], places[0] + len(places)))


def spread_of(paths):
    return next(spread(len(paths), len(ORDER)))


def test_each_rule_removes_no_more_than_it_needs(tables):
    search, pool = pool_of(tables, Budget(macs=0.5))
    limits = search.meter.path_limits(float("inf"), pool.budget)
    baselines = Baselines(search.graph, tables, search.builder.fit)
    for rule in ("last-k", "uniform", "block influence", "lowest influence"):
        count = len(removed(search, baselines.path(rule, limits)))
        assert 0 < count < 6
        for fewer in range(1, count):
            for positions in baselines.rules[rule](fewer):
                path = baselines._without([baselines.removals[position] for position in positions])
                assert path.macs > limits.macs


def test_without_recovery_no_rule_and_no_discount_of_removals(tables):
    _, pool = pool_of(tables, Budget(macs=0.5), recovery=False)
    assert {plan.origin for plan in pool.plans} == {"solver"}
    assert max(plan.generator for plan in pool.plans) < len(GENERATORS) - 1


def test_a_rule_that_cannot_meet_the_budget_is_named():
    allowed = frozenset({"layer1.0", "layer1.1"})
    tables = maker(kinds=("linear", "conv3"), longest=2, allowed=allowed).build()
    least = sum(1 for one in tables.edges if one.action == "remove")
    assert least == 2
    _, pool = pool_of(tables, Budget(params=0.99))
    reached = {plan.origin for plan in pool.plans}
    named = {rule for rule in BASELINES for note in pool.notes if note.startswith(f"the plan '{rule}'")}
    assert named | (reached - {"solver"}) == set(BASELINES)
    impossible = pool_of(tables, Budget(latency=0.9, macs=0.62))[1]
    assert "removing every block does not meet the budget" in " ".join(impossible.notes)


def test_a_plain_network_has_no_plan_of_removals():
    tables = maker(footing.plain(), kinds=("linear", "conv3"), longest=2).build()
    search = planner(tables, footing.plain())
    pool = PlanPool(search.meter, search.meter.plan_budget(Budget(macs=0.7)), recovery=True)
    pool.solve_rounds()
    pool.fill(6)
    assert {plan.origin for plan in pool.plans} == {"solver"}
    assert any(note.startswith("no block can be removed") for note in pool.notes)


class SlowRemovals(stopwatch.FakeClock):
    """Networks with many blocks removed take longer than their modules say."""

    def time_models(self, group, *, precise=False):
        true = super().time_models(group, precise=precise)
        return {name: ms if name == "whole" else 1.15 * ms for name, ms in true.items()}


def test_a_rule_whose_plan_proves_too_slow_removes_more(tables):
    _, quick = pool_of(tables, Budget(latency=0.6))
    search, slow = pool_of(tables, Budget(latency=0.6), clock=SlowRemovals(batches(12, 3, 8, 8)[0]))
    few, many = (
        {plan.origin: len(removed(search, plan.path)) for plan in pool.plans if plan.origin != "solver"}
        for pool in (quick, slow)
    )
    assert all(slow.budget.is_met(plan, 1.03) for plan in slow.plans if plan.origin != "solver")
    assert any(many[rule] > few[rule] for rule in BASELINES if rule in many and rule in few)


def test_a_rule_whose_plan_leaves_time_removes_less(tables):
    """The solver's plans seem to say that all take longer than the tables foretell: plans of removals do not."""

    def fewest_removed(excess):
        search = planner(tables, clock=stopwatch.FakeClock(batches(12, 3, 8, 8)[0]))
        pool = PlanPool(search.meter, search.meter.plan_budget(Budget(latency=0.5)), True, search.builder.fit)
        pool.latency_ms /= excess
        pool._add_baselines()
        return {plan.origin: len(removed(search, plan.path)) for plan in pool.plans}

    misled, told = fewest_removed(1.8), fewest_removed(1.0)
    rules = misled.keys() & told.keys()  # a rule whose plan is that of another by then has none of its own
    assert "most parameters" in rules
    assert {rule: misled[rule] for rule in rules} == {rule: told[rule] for rule in rules}


def test_of_a_rule_the_largest_plan_that_is_quick_enough_races():
    from shoal.pipeline.plan_measure import MeasuredPlan
    from shoal.pipeline.plan_shortlist import _contenders

    def measured(origin, index):
        path = Path(edges=(index,), damage=1.0, latency_ms=1.0, macs=1.0, params=1.0, depth=1)
        return MeasuredPlan(path, 0.5, 0.5, 1.0, origin=origin)

    plans = [measured("solver", 0), measured("uniform", 1), measured("uniform", 2), measured("solver", 3)]
    assert _contenders(plans, 3) == [plans[0], plans[1], plans[3]]
    assert _contenders(plans, 1) == plans[:1]
    assert _contenders(plans[2:], 2) == [plans[2], plans[3]]


def test_positions_of_rules():
    assert list(next(last(2, 5))) == [3, 4]
    assert next(spread(2, 6)) == [1, 4]
    assert next(spread(3, 6)) == [1, 3, 5]
    assert next(spread(6, 6)) == [0, 1, 2, 3, 4, 5]
    assert [list(places) for places in in_a_row(2, [0.5, 0.1, 0.2, 0.9])] == [[1, 2], [0, 1], [2, 3]]
    assert next(in_a_row(1, [1.0, 1.0])) == range(1, 2)  # of windows that are alike the last
    assert next(lowest(2, [0.5, 0.1, 0.9, 0.2, 0.2])) == [1, 4]  # of equal ones the later


def test_what_cannot_be_removed_stays_wherever_it_is():
    """The second of four blocks changes the shape and has no edge that removes it."""
    edges = [edge(start, start + 1, "keep") for start in range(4)]
    edges += [edge(start, start + 1, "remove", latency=0.0) for start in (0, 2, 3)]
    chain = SimpleNamespace(paths=("a", "b", "c", "d"))
    baselines = Baselines(None, SimpleNamespace(segments=chain, edges=edges, units_by_edge={}), ())
    limits = ResourceLimits(latency_ms=2.0)
    assert baselines.path("last-k", limits).edges == (0, 1, 5, 6)
    assert baselines.path("uniform", limits).edges == (4, 1, 2, 6)
    assert baselines.path("removals only", limits).edges[1] == 1
    assert baselines.path("last-k", ResourceLimits(latency_ms=0.5)) is None


def test_most_parameters_remain_and_of_equal_many_the_least_damage():
    """Two of four blocks have to go: the large one stays, and of the small ones the one that matters most."""
    sizes, damages = (100.0, 10.0, 10.0, 10.0), (0.1, 0.5, 0.2, 0.3)
    edges = [
        edge(start, start + 1, "keep", 0.0).model_copy(update={"params": size}) for start, size in enumerate(sizes)
    ]
    edges += [
        edge(start, start + 1, "remove", damage, 0.0).model_copy(update={"params": 0.0})
        for start, damage in enumerate(damages)
    ]
    edges += [edge(0, 4, "replace", 0.0, 0.5).model_copy(update={"params": 500.0})]  # fresh ones do not count
    shapes = [((4, 8, 8), (4, 8, 8))] * 4

    def baselines(shapes):
        parts = [SimpleNamespace(in_shape=before, out_shape=after) for before, after in shapes]
        chain = SimpleNamespace(paths=("a", "b", "c", "d"), segments=parts)
        return Baselines(None, SimpleNamespace(segments=chain, edges=edges, units_by_edge={}), ())

    limits = ResourceLimits(latency_ms=2.0)
    changing = [*shapes[:3], ((4, 8, 8), (8, 4, 4))]
    assert baselines(changing).path("most parameters", limits).edges == (0, 5, 6, 3)  # what changes the shape stays
    every = [((4, 8, 8), (8, 4, 4))] * 4
    assert baselines(every).path("most parameters", limits).edges == (0, 1, 6, 7)  # where it can
    baselines = baselines(shapes)
    assert baselines.path("most parameters", limits).edges == (0, 1, 6, 7)
    assert baselines.path("removals only", limits).edges == (4, 1, 6, 3)
    assert baselines.path("most parameters", limits).damage == 0.5  # as the tables say, not what was solved for


def test_influence_is_measured_and_a_network_that_cannot_be_followed_has_none(monkeypatch, tables):
    search = planner(tables)
    baselines = Baselines(search.graph, tables, search.builder.fit)
    assert len(baselines.influences) == 6
    assert len(set(baselines.influences)) > 3
    assert baselines.influences[2] == 1.0  # it changes the shape: its input cannot be compared with its output

    def refuses(*args, **more):
        raise DataError("no", "")

    monkeypatch.setattr(plan_baselines, "block_scores", refuses)
    blind = Baselines(search.graph, tables, search.builder.fit)
    assert blind.influences == [1.0] * 6


def test_damage_is_counted_in_several_ways():
    edges = [edge(0, 1, action, 4.0) for action in ("keep", "remove", "replace")]
    assert [one.damage for one in weighted(edges, 0.5, 0.25, {0: 0, 1: 0, 2: 0})] == [2.0, 0.5, 2.0]
    assert [one.damage for one in weighted(edges, 1.0, 1.0, {0: 0, 1: 2, 2: 1})] == [4.0, 8.0, 6.0]
    one_large = [edge(0, 2, "replace", 1.0), edge(0, 1, "replace", 0.4), edge(1, 2, "replace", 0.4)]
    unused = dict.fromkeys(range(3), 0)
    assert solve(one_large, 2, ResourceLimits()).edges == (1, 2)
    assert solve(weighted(one_large, 0.5, 1.0, unused), 2, ResourceLimits()).edges == (0,)
    assert weighted([edge(0, 1, "keep", 0.0)], 0.45, 1.0, {0: 3})[0].damage == 0.0


def test_preactivation_blocks_all_removed_cost_nothing():
    model = networks.randomised(networks.PreactNet(4, 3))
    search = planner(model=model, shape=(12, 1, 8, 8), kinds=("linear",), longest=1)
    baselines = Baselines(search.graph, search.tables, search.builder.fit)
    everything = baselines.path("last-k", ResourceLimits(depth=0))
    assert isinstance(everything, Path)
    assert len(removed(search, everything)) == len(baselines.removals)
    assert not any(isinstance(action, Replace) for action in search.builder.actions(everything))
