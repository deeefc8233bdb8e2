"""Plans whose damage is corrected for pairs of edges, against brute force."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_solver import OBJECTIVES, all_paths, chains, edge, keeps, total

from shoal.errors import PlanError
from shoal.plan import PairTerm, ResourceLimits, best, front, solve
from shoal.plan.solver import TOLERANCE, build_edge_graph


def damage(edges, path, pairs):
    terms = [pair.damage for pair in pairs if {pair.first, pair.second} <= set(path)]
    return math.fsum([total(edges, path, "damage"), *terms])


def amount(edges, path, pairs, name):
    return damage(edges, path, pairs) if name == "damage" else total(edges, path, name)


@st.composite
def paired_problems(draw):
    edges, length = draw(chains())
    index = st.integers(0, len(edges) - 1)
    drawn = draw(st.lists(st.tuples(index, index, st.integers(-8, 8)), max_size=10))
    # In powers of two, so that terms that cancel leave nothing: a limit of zero would tell 1e-18 from it.
    pairs = [PairTerm(first=a, second=b, damage=value / 1024) for a, b, value in drawn if a != b]
    limits = {
        name: draw(st.integers(0, 5 * length)) * unit
        for name, unit in (("damage", 1e-3), ("latency_ms", 1e-3), ("macs", 1e6))
        if draw(st.booleans())
    }
    return edges, length, pairs, ResourceLimits(**limits)


def within(edges, length, pairs, budget):
    """Every path within the budget, by brute force."""
    return [
        path
        for path in all_paths(edges, length)
        if all(
            amount(edges, path, pairs, name) <= limit * (1 + TOLERANCE) + 1e-12 * (name == "damage")
            for name, limit in budget.limits().items()
        )
    ]


@settings(max_examples=120, deadline=None)
@given(problem=paired_problems(), objective=OBJECTIVES)
def test_the_same_optimum_as_brute_force_with_pairs_of_either_sign(problem, objective):
    edges, length, pairs, budget = problem
    paths = within(edges, length, pairs, budget)
    solved = solve(edges, length, budget, objective=objective, pairs=pairs)
    if not paths:
        assert solved is None
        return
    assert solved is not None
    assert solved.edges in paths
    optimum = min(amount(edges, path, pairs, objective) for path in paths)
    assert amount(edges, solved.edges, pairs, objective) == pytest.approx(optimum, rel=1e-8, abs=1e-10)
    assert solved.damage == pytest.approx(damage(edges, solved.edges, pairs), rel=1e-12, abs=1e-15)


@settings(max_examples=30, deadline=None)
@given(problem=paired_problems(), k=st.integers(2, 5))
def test_the_best_few_are_the_best_few_of_all(problem, k):
    edges, length, pairs, budget = problem
    ranked = sorted(damage(edges, path, pairs) for path in within(edges, length, pairs, budget))
    paths = best(edges, length, budget, k, pairs=pairs)
    assert len({path.edges for path in paths}) == len(paths) == min(k, len(ranked))
    assert [path.damage for path in paths] == pytest.approx(ranked[:k], rel=1e-8, abs=1e-10)


@settings(max_examples=30, deadline=None)
@given(problem=paired_problems())
def test_sums_over_edges_bound_what_pairs_add_to_any_path(problem):
    edges, length, pairs, _ = problem
    graph = build_edge_graph(edges, length, pairs)
    for path in all_paths(edges, length):
        added = math.fsum(graph.pairs.on(path))
        assert added == pytest.approx(damage(edges, path, pairs) - total(edges, path, "damage"), abs=1e-12)
        assert graph.pairs.lower[list(path)].sum() - 1e-12 <= added <= graph.pairs.upper[list(path)].sum() + 1e-12


def test_gains_of_partners_that_exclude_each_other_are_not_added_up():
    edges = [*keeps(4), edge(0, 1), edge(1, 3, damage=1), edge(2, 3, damage=1), edge(3, 4, damage=1)]
    graph = build_edge_graph(
        edges, 4, [PairTerm(first=4, second=other, damage=-value) for other, value in ((5, 0.2), (6, 0.3), (7, 0.4))]
    )
    assert graph.pairs.lower[4] == pytest.approx(-0.7)


def test_a_pair_that_is_worse_together_is_avoided_and_one_that_is_better_sought():
    edges = [*keeps(3, latency_ms=2.0), *(edge(at, at + 1, "remove", damage=1.0) for at in range(3))]
    budget = ResourceLimits(latency_ms=2.0)
    worse = [PairTerm(first=3, second=4, damage=0.5), PairTerm(first=5, second=4, damage=0.5)]
    assert solve(edges, 3, budget, pairs=worse).edges == (3, 1, 5)
    assert solve(edges, 3, budget, pairs=worse).damage == 2.0
    better = [PairTerm(first=4, second=3, damage=-0.5)]
    assert solve(edges, 3, budget, pairs=better).edges == (3, 4, 2)
    assert solve(edges, 3, budget, pairs=better).damage == 1.5


def test_the_front_counts_pairs():
    edges = [*keeps(3, latency_ms=2.0), *(edge(at, at + 1, "remove", damage=1.0) for at in range(3))]
    pairs = [PairTerm(first=3, second=4, damage=-0.75), PairTerm(first=4, second=5, damage=0.5)]
    points = [(path.latency_ms, path.damage) for path in front(edges, 3, pairs=pairs)]
    assert points == [(0.0, 2.75), (2.0, 1.25), (4.0, 1.0), (6.0, 0.0)]


def test_terms_of_one_pair_add_up_and_those_of_overlapping_edges_are_void():
    edges = [*keeps(2), edge(0, 2), edge(1, 2)]
    graph = build_edge_graph(
        edges,
        2,
        [
            PairTerm(first=0, second=3, damage=1.0),
            PairTerm(first=3, second=0, damage=0.5),
            PairTerm(first=2, second=3, damage=-9.0),
        ],
    )
    assert len(graph.pairs) == 1
    assert graph.pairs.on((0, 3)) == [1.5]


@pytest.mark.parametrize(
    ("pair", "text"),
    [
        ((0, 9, 0.1), "a pair is of the edges 0 and 9, expected two of 0..1"),
        ((-1, 1, 0.1), "a pair is of the edges -1 and 1"),
        ((1, 1, 0.1), "a pair is of the edges 1 and 1"),
        ((0, 1, math.nan), "the term of the edges 0 and 1 is nan"),
        ((0, 1, math.inf), "is inf"),
    ],
)
def test_pairs_that_make_no_sense_are_refused(pair, text):
    first, second, value = pair
    with pytest.raises(PlanError, match=text):
        solve(keeps(2), 2, ResourceLimits(), pairs=[PairTerm(first=first, second=second, damage=value)])


def random_table(length, seed=0):
    rng = random.Random(seed)
    edges = keeps(length, latency_ms=1.0)
    for start in range(length):
        for stop in range(start + 1, min(length, start + 5) + 1):
            for kind in range(5):
                size = stop - start
                edges.append(
                    edge(
                        start,
                        stop,
                        damage=0.02 * size**1.5 * rng.uniform(0.5, 1.5) / (kind + 1),
                        latency_ms=0.2 * (kind + 1),
                    )
                )
    changes = [index for index, one in enumerate(edges) if one.action != "keep"]
    near = [(a, b) for a, b in itertools.permutations(changes, 2) if 0 <= edges[b].start - edges[a].stop <= 1]
    pairs = [
        PairTerm(first=a, second=b, damage=max(-1.0, rng.gauss(-0.4, 0.5)) * min(edges[a].damage, edges[b].damage))
        for a, b in rng.sample(near, 400)
    ]
    return edges, pairs


@pytest.mark.slow
@pytest.mark.parametrize("length", [27, 54])
def test_a_large_table_with_pairs_is_solved_no_worse_than_without_them(length, capfd):
    edges, pairs = random_table(length)
    budget = ResourceLimits(latency_ms=0.5 * length)
    path, additive = solve(edges, length, budget, pairs=pairs), solve(edges, length, budget)
    assert path.damage < damage(edges, additive.edges, pairs)
    assert capfd.readouterr().out == ""
