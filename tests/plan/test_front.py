import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan.test_solver import all_paths, chains, edge, keeps, total
from shoal.errors import PlanError
from shoal.plan import Edge, front
from shoal.plan.front import COSTS


def pareto(edges: list[Edge], length: int, cost: str) -> list[tuple[float, float]]:
    """(cost, damage) of every Pareto-optimal path by brute force, cheapest first; equal to 1e-12 is one point."""
    points = {
        (float(f"{total(edges, path, cost):.12g}"), float(f"{total(edges, path, 'damage'):.12g}"))
        for path in all_paths(edges, length)
    }
    return sorted(
        one for one in points if not any(other != one and other[0] <= one[0] and other[1] <= one[1] for other in points)
    )


@settings(max_examples=100, deadline=None)
@given(chain=chains(), cost=st.sampled_from(COSTS), points=st.integers(2, 12))
def test_the_points_are_of_the_true_front_with_both_its_ends(chain, cost, points):
    edges, length = chain
    truth = pareto(edges, length, cost)
    found = [
        (float(f"{getattr(path, cost):.12g}"), float(f"{path.damage:.12g}"))
        for path in front(edges, length, cost=cost, points=points)
    ]
    assert set(found) <= set(truth)
    assert found == sorted(set(found))
    assert len(found) == min(points, len(truth))
    assert (found[0], found[-1]) == (truth[0], truth[-1])


def test_a_point_a_rounding_above_a_budget_is_found_once():
    latencies = [0.005, 0.005, 0.005, 0.001, 0.006]
    edges = [edge(at, at + 1, "keep", latency_ms=latency) for at, latency in enumerate(latencies)]
    edges += [edge(2, 3, "remove", damage=0.001, latency_ms=0.003), edge(0, 1, "remove", damage=0.001)]
    assert [round(path.latency_ms, 6) for path in front(edges, 5, points=8)] == [0.015, 0.017, 0.022]


def test_of_blocks_that_all_cost_the_same_the_front_is_found():
    """A path just above a bound has as many twins as there are ways to choose among alike blocks."""
    rng, length, cost = random.Random(0), 16, 1.6580639689810295
    edges, gentlest = [], []
    for at in range(length):
        damages = [rng.uniform(0.04, 0.2) for _ in "ab"]
        edges.append(edge(at, at + 1, "keep", latency_ms=cost, macs=138018816.0))
        edges += [edge(at, at + 1, "remove", damage=damage) for damage in damages]
        gentlest.append(min(damages))
    found = front(edges, length, points=24)
    gentlest.sort()
    expected = [sum(gentlest[:removed]) for removed in range(length, -1, -1)]
    assert [path.depth for path in found] == list(range(length + 1))
    assert [path.damage for path in found] == pytest.approx(expected)


def test_the_ends_are_all_kept_and_the_cheapest():
    edges = [*keeps(4), *(edge(at, at + 1, "remove", damage=0.1 * (at + 1)) for at in range(4))]
    found = front(edges, 4, points=5)
    assert [path.depth for path in found] == [0, 1, 2, 3, 4]
    assert found[-1].edges == (0, 1, 2, 3)
    assert [path.damage for path in found] == pytest.approx([1.0, 0.6, 0.3, 0.1, 0.0])


def test_one_point_where_nothing_else_can_be_had():
    assert [path.edges for path in front(keeps(3), 3)] == [(0, 1, 2)]
    # Nothing is cheaper than free: the removal without damage is the whole front.
    assert [path.edges for path in front([*keeps(1), edge(0, 1, "remove")], 1)] == [(1,)]


def test_points_that_crowd_together_are_found_between_the_even_budgets():
    # Nine of ten points lie within a hundredth of the cost, where evenly spaced budgets do not look.
    edges = [edge(0, 1, "keep", latency_ms=100.0)]
    edges += [edge(0, 1, damage=10.0 - at, latency_ms=1 + 0.1 * at) for at in range(9)]
    assert [path.edges for path in front(edges, 1, points=10)] == [(at,) for at in [*range(1, 10), 0]]
    assert len(front(edges, 1, points=4)) == 4


def test_of_points_equal_in_both_the_faster_stands_for_all():
    edges = [edge(0, 1, latency_ms=2, macs=1), edge(0, 1, latency_ms=1, macs=1), edge(0, 1, damage=1, latency_ms=5)]
    assert [path.edges for path in front(edges, 1, cost="macs")] == [(2,), (1,)]


def test_less_of_the_cost_counts_before_less_latency():
    edges = [edge(0, 1, latency_ms=2, macs=10), edge(0, 1, latency_ms=1, macs=11), edge(0, 1, damage=9, macs=1)]
    edges += [edge(0, 1, damage=1, latency_ms=1, macs=3), edge(0, 1, damage=1, latency_ms=3, macs=2)]
    for points in (3, 20):  # with 3 the only budget between the ends is one that both equals fit in
        assert [path.edges for path in front(edges, 1, cost="macs", points=points)] == [(2,), (4,), (0,)]


def chain_of_thirty() -> list[Edge]:
    dice = random.Random(0)
    edges = keeps(30)
    for start in range(30):
        edges.append(edge(start, start + 1, "remove", damage=dice.lognormvariate(-2, 1), latency_ms=1e-3))
        for stop in range(start + 1, min(30, start + 5) + 1):
            damage = 0.02 * (stop - start) ** 1.5
            edges += [
                edge(start, stop, damage=damage * dice.lognormvariate(0, 0.5), latency_ms=dice.uniform(0.3, 0.9))
                for _ in range(2)
            ]
    return edges


def test_a_deep_chain_has_as_many_points_as_asked_for_each_better_in_one_of_both():
    edges = chain_of_thirty()
    found = front(edges, 30, points=25)
    assert len(found) >= 25
    assert found == front(edges, 30, points=25)
    for cheaper, dearer in pairwise(found):
        assert cheaper.latency_ms < dearer.latency_ms
        assert cheaper.damage > dearer.damage
    for path in found:
        assert [edges[index].stop for index in path.edges[:-1]] == [edges[index].start for index in path.edges[1:]]


def test_what_makes_no_front_is_refused():
    with pytest.raises(PlanError, match="points is 1, expected at least 2"):
        front(keeps(2), 2, points=1)
    with pytest.raises(PlanError, match=r"the cost is 'mac', .*\n.*'macs'"):
        front(keeps(2), 2, cost="mac")
    with pytest.raises(PlanError, match="the cost is 'damage'"):
        front(keeps(2), 2, cost="damage")
    with pytest.raises(PlanError, match=r"edge 2 covers the positions 1\.\.3, expected 0\.\.2"):
        front([*keeps(2), edge(1, 3)], 2)
    with pytest.raises(PlanError, match="lead to 1, expected 2"):
        front(keeps(1), 2)


# A table on which HiGHS' presolve calls a feasible problem infeasible: (start, stop, action, kind, damage, latency,
# macs, params, depth).
TIGHT = [
    (0, 1, "keep", "", 0.0, 0.18832000000000002, 18432.0, 304.0, 1),
    (1, 2, "keep", "", 0.0, 0.18832000000000002, 18432.0, 304.0, 1),
    (1, 2, "remove", "", 0.00017114685585182277, 0.0, 0.0, 0.0, 0),
    (2, 3, "keep", "", 0.0, 0.14224, 13824.0, 896.0, 1),
    (3, 4, "keep", "", 0.0, 0.18832000000000002, 18432.0, 1184.0, 1),
    (3, 4, "remove", "", 0.0012982467290452045, 0.0, 0.0, 0.0, 0),
    (4, 5, "keep", "", 0.0, 0.14224, 13824.0, 3520.0, 1),
    (5, 6, "keep", "", 0.0, 0.18832000000000002, 18432.0, 4672.0, 1),
    (5, 6, "remove", "", 0.0020364651551181092, 0.0, 0.0, 0.0, 0),
    (1, 2, "replace", "conv3", 3.6775424724297865e-06, 0.09416000000000001, 9216.0, 148.0, 1),
    (1, 2, "replace", "conv1", 5.9730541688346114e-06, 0.012240000000000001, 1024.0, 20.0, 1),
    (3, 4, "replace", "conv3", 6.62639992339015e-06, 0.09416000000000001, 9216.0, 584.0, 1),
    (3, 4, "replace", "conv1", 2.575875956287426e-05, 0.012240000000000001, 1024.0, 72.0, 1),
    (5, 6, "replace", "conv3", 3.2268708361922007e-06, 0.09416000000000001, 9216.0, 2320.0, 1),
    (5, 6, "replace", "conv1", 2.3925382592447756e-05, 0.012240000000000001, 1024.0, 272.0, 1),
]


def test_a_problem_that_presolve_calls_infeasible_is_solved():
    names = ("start", "stop", "action", "kind", "damage", "latency_ms", "macs", "params", "depth")
    edges = [Edge(**dict(zip(names, row, strict=True))) for row in TIGHT]
    found = front(edges, 6, points=20)
    assert len(found) >= 2
    assert found[-1].damage == 0
    assert all(a.damage >= b.damage for a, b in pairwise(found))
