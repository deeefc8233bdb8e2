import json
import math
import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import PlanError
from shoal.plan import Edge, Path, ResourceLimits, best, solve
from shoal.plan.solver import OBJECTIVES as QUANTITIES
from shoal.plan.solver import TOLERANCE

OBJECTIVES = st.sampled_from(QUANTITIES)


def edge(start: int, stop: int, action: str = "replace", **numbers: float) -> Edge:
    free = {"damage": 0.0, "latency_ms": 0.0, "macs": 0.0, "params": 0.0, "depth": 0 if action == "remove" else 1}
    return Edge(start=start, stop=stop, action=action, kind="conv" if action == "replace" else "", **(free | numbers))


def keeps(length: int, **numbers: float) -> list[Edge]:
    return [
        edge(at, at + 1, "keep", **({"latency_ms": 1.0, "macs": 1.0, "params": 1.0} | numbers)) for at in range(length)
    ]


def all_paths(edges: list[Edge], length: int, at: int = 0) -> Iterator[tuple[int, ...]]:
    if at == length:
        yield ()
    for index, one in enumerate(edges):
        if one.start == at:
            yield from ((index, *rest) for rest in all_paths(edges, length, one.stop))


def total(edges: list[Edge], path: tuple[int, ...], name: str) -> float:
    return math.fsum(getattr(edges[index], name) for index in path)


def ranked(edges: list[Edge], length: int, budget: ResourceLimits, objective: str) -> list[tuple[int, ...]]:
    """All paths within the budget by brute force, best first."""
    within = [
        path
        for path in all_paths(edges, length)
        if all(total(edges, path, name) <= limit * (1 + TOLERANCE) for name, limit in budget.limits().items())
    ]
    return sorted(within, key=lambda path: (total(edges, path, objective), total(edges, path, "latency_ms"), len(path)))


def order_of(edges: list[Edge], path: tuple[int, ...], objective: str) -> tuple[float, float, int]:
    return total(edges, path, objective), total(edges, path, "latency_ms"), len(path)


# Whole numbers make ties and totals that meet a budget exactly; units spread over twelve orders of magnitude.
UNITS = {"damage": 1e-3, "latency_ms": 1e-3, "macs": 1e6, "params": 1e9}


@st.composite
def chains(draw: st.DrawFn, *, whole: bool = True) -> tuple[list[Edge], int]:
    length = draw(st.integers(1, 5))
    numbers = st.integers(0, 6) if whole else st.floats(0, 6, allow_subnormal=False)
    edges = [
        edge(
            at,
            at + 1,
            "keep",
            depth=1,
            **{name: draw(numbers) * unit for name, unit in UNITS.items() if name != "damage"},
        )
        for at in range(length)
    ]
    for _ in range(draw(st.integers(0, 8))):
        start = draw(st.integers(0, length - 1))
        stop = draw(st.integers(start + 1, min(length, start + 3)))
        action = draw(st.sampled_from(["remove", "replace"]))
        edges.append(edge(start, stop, action, **{name: draw(numbers) * unit for name, unit in UNITS.items()}))
    order = draw(st.permutations(range(len(edges))))
    return [edges[index] for index in order], length


@st.composite
def problems(draw: st.DrawFn, *, whole: bool = True) -> tuple[list[Edge], int, ResourceLimits]:
    edges, length = draw(chains(whole=whole))
    names = draw(st.sets(OBJECTIVES, max_size=4))
    # Between nothing and about what everything costs, and often exactly a total that some path has.
    limits = {name: draw(st.integers(0, 5 * length)) * UNITS.get(name, 1 / 3) for name in sorted(names)}
    return edges, length, ResourceLimits(**limits)


@settings(max_examples=200, deadline=None)
@given(problem=st.one_of(problems(), problems(whole=False)), objective=OBJECTIVES)
def test_the_same_optimum_as_brute_force_under_no_one_and_several_budgets(problem, objective):
    edges, length, budget = problem
    truth = ranked(edges, length, budget, objective)
    found = solve(edges, length, budget, objective=objective)
    if not truth:
        assert found is None
        return
    assert found is not None
    assert found.edges in truth
    assert total(edges, found.edges, objective) == pytest.approx(total(edges, truth[0], objective), rel=2e-9, abs=0)


@settings(max_examples=100, deadline=None)
@given(problem=problems(), objective=OBJECTIVES)
def test_ties_go_to_less_latency_then_to_fewer_edges(problem, objective):
    edges, length, budget = problem
    truth = ranked(edges, length, budget, objective)
    found = solve(edges, length, budget, objective=objective)
    if truth:
        assert found is not None
        assert order_of(edges, found.edges, objective) == pytest.approx(order_of(edges, truth[0], objective), rel=2e-9)


@settings(max_examples=75, deadline=None)
@given(problem=st.one_of(problems(), problems(whole=False)), objective=OBJECTIVES, k=st.integers(1, 8))
def test_the_k_best_are_those_of_brute_force_in_order(problem, objective, k):
    edges, length, budget = problem
    truth = ranked(edges, length, budget, objective)
    found = best(edges, length, budget, k, objective)
    assert len(found) == min(k, len(truth))
    assert len({path.edges for path in found}) == len(found)
    values = [total(edges, path.edges, objective) for path in found]
    assert values == pytest.approx([total(edges, path, objective) for path in truth[:k]], rel=1e-8, abs=0)


@settings(max_examples=75, deadline=None)
@given(problem=problems(), objective=OBJECTIVES, data=st.data())
def test_paths_that_are_not_wanted_are_not_given(problem, objective, data):
    edges, length, budget = problem
    truth = ranked(edges, length, budget, objective)
    unwanted = data.draw(st.sets(st.sampled_from(truth), max_size=4)) if truth else set()
    left = [path for path in truth if path not in unwanted]
    found = solve(edges, length, budget, objective=objective, without=[frozenset(path) for path in sorted(unwanted)])
    assert (found is None) == (not left)
    if found is not None:
        assert found.edges in left
        assert total(edges, found.edges, objective) == pytest.approx(total(edges, left[0], objective), rel=2e-9, abs=0)


def test_the_totals_belong_to_the_edges_in_order():
    edges = [edge(1, 3, damage=0.5, latency_ms=0.25, macs=3, params=4), *keeps(3, macs=2, params=5)]
    path = solve(edges, 3, ResourceLimits(latency_ms=2))
    assert path == Path(edges=(1, 0), damage=0.5, latency_ms=1.25, macs=5, params=9, depth=2)
    assert Path.model_validate_json(path.model_dump_json()) == path


def test_a_budget_that_is_met_exactly_is_met_and_one_a_little_smaller_is_not():
    edges = [*keeps(3, latency_ms=0.1), *(edge(at, at + 1, "remove", damage=1.0) for at in range(3))]
    assert solve(edges, 3, ResourceLimits(latency_ms=0.3)).depth == 3  # 0.1 + 0.1 + 0.1 > 0.3 in floating point
    assert solve(edges, 3, ResourceLimits(latency_ms=0.3 * (1 - 1e-8))).depth == 2
    assert solve(edges, 3, ResourceLimits(latency_ms=0)).depth == 0
    assert solve(keeps(3), 3, ResourceLimits(latency_ms=2.9)) is None


def test_budgets_that_can_be_met_one_by_one_but_not_together():
    edges = [edge(0, 1, latency_ms=1, macs=3), edge(0, 1, latency_ms=3, macs=1), edge(1, 2)]
    assert solve(edges, 2, ResourceLimits(latency_ms=1)).edges == (0, 2)
    assert solve(edges, 2, ResourceLimits(macs=1)).edges == (1, 2)
    # The relaxation takes half of each, so only the integer program knows.
    assert solve(edges, 2, ResourceLimits(latency_ms=2, macs=2)) is None


def test_the_fastest_within_a_damage():
    edges = [*keeps(4), *(edge(at, at + 1, "remove", damage=0.1 * (at + 1)) for at in range(4))]
    path = solve(edges, 4, ResourceLimits(damage=0.3), objective="latency_ms")
    assert path.latency_ms == 2
    assert path.damage == pytest.approx(0.3)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e9])
def test_damages_that_differ_by_little_are_told_apart_at_every_scale(scale):
    # 1e-7 is below what HiGHS takes for equal if it is not told the scale; a far worse edge must not set it.
    edges = [
        *keeps(6, latency_ms=1.0),
        *(edge(at, at + 1, damage=scale * (1 + 1e-7 * ((at * 5) % 6)), latency_ms=0.5) for at in range(6)),
        *(edge(at, at + 1, "remove", damage=1e6 * scale, latency_ms=0.45) for at in range(6)),
    ]
    path = solve(edges, 6, ResourceLimits(latency_ms=4.5))
    truth = ranked(edges, 6, ResourceLimits(latency_ms=4.5), "damage")[0]
    assert path.edges == truth


@pytest.mark.parametrize("flip", [False, True])
def test_of_paths_equal_in_damage_and_latency_the_one_with_fewer_edges(flip):
    edges = [*keeps(4), edge(0, 2, latency_ms=2), edge(2, 4, latency_ms=2), edge(0, 3, latency_ms=3)]
    edges = edges[::-1] if flip else edges
    path = solve(edges, 4, ResourceLimits())
    assert len(path.edges) == 2
    assert path.latency_ms == 4


def least_damage_by_time(edges: list[Edge], length: int, most: int) -> list[float]:
    """The least damage within each whole latency 0..most, by dynamic programming: no linear program."""
    table = [[math.inf] * (most + 1) for _ in range(length + 1)]
    table[0] = [0.0] * (most + 1)
    for one in sorted(edges, key=lambda one: one.stop):
        time = round(one.latency_ms)
        for spent in range(time, most + 1):
            table[one.stop][spent] = min(table[one.stop][spent], table[one.start][spent - time] + one.damage)
    return table[length]


def deep_chain(seed: int, length: int = 30) -> list[Edge]:
    """Deep enough that HiGHS has to branch, and would stop early at its default gap."""
    dice = random.Random(seed)
    edges = keeps(length, latency_ms=40)
    for start in range(length):
        edges.append(edge(start, start + 1, "remove", damage=dice.lognormvariate(-2, 1), latency_ms=1))
        for stop in range(start + 1, min(length, start + 5) + 1):
            for _ in range(2):
                damage = 0.02 * (stop - start) ** 1.5 * dice.lognormvariate(0, 0.5)
                edges.append(edge(start, stop, damage=damage, latency_ms=dice.randint(12, 36)))
    return edges


@pytest.mark.parametrize("seed", [0, 1])
def test_a_deep_chain_has_the_optimum_of_dynamic_programming(seed):
    length, edges = 30, deep_chain(seed)
    truth = least_damage_by_time(edges, length, 40 * length)
    for limit in range(100, 40 * length, 83):
        assert solve(edges, length, ResourceLimits(latency_ms=limit)).damage == pytest.approx(
            truth[limit], rel=2e-9, abs=0
        )


def test_the_same_edges_give_the_same_path():
    edges = [*keeps(5), *(edge(at, at + 1, "remove", damage=1.0) for at in range(5))]
    first = best(edges, 5, ResourceLimits(depth=3), 6)
    assert [best(edges, 5, ResourceLimits(depth=3), 6) for _ in range(3)] == [first] * 3


@pytest.mark.parametrize("name", ["damage", "latency_ms", "macs", "params"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_an_edge_with_a_number_that_is_none_is_refused(name, value):
    with pytest.raises(PlanError, match=rf"the edge .* {name} is {value}, expected a finite number >= 0\n.*not diff"):
        edge(0, 1, **{name: value})


def test_an_edge_that_leads_nowhere_is_refused():
    with pytest.raises(PlanError, match="goes from 2 to 2, expected start < stop"):
        edge(2, 2)
    with pytest.raises(PlanError, match="action: Input should be 'keep', 'remove' or 'replace'"):
        edge(0, 1, "forget")


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.5])
@pytest.mark.parametrize("name", QUANTITIES)
def test_a_budget_that_is_none_is_refused(name, value):
    with pytest.raises(PlanError, match=rf"the budget .* {name} is {value}, expected a finite number >= 0"):
        ResourceLimits(**{name: value})


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (1, 4)])
def test_an_edge_outside_the_chain_is_refused(start, stop):
    edges = [*keeps(3), edge(start, stop)]
    for call in (
        lambda: solve(edges, 3, ResourceLimits()),
        lambda: best(edges, 3, ResourceLimits(), 2),
    ):
        with pytest.raises(PlanError, match=rf"edge 3 covers the positions {start}\.\.{stop}, expected 0\.\.3\n.*Drop"):
            call()


def test_a_chain_that_no_path_covers_is_refused():
    with pytest.raises(PlanError, match=r"from 0 they lead to 1, expected 3\n.*position 1 on"):
        solve([edge(0, 1), edge(2, 3)], 3, ResourceLimits())
    with pytest.raises(PlanError, match="from 0 they lead to 0, expected 2"):
        solve([], 2, ResourceLimits())
    with pytest.raises(PlanError, match="0 blocks, expected at least 1"):
        solve([], 0, ResourceLimits())


def test_an_unknown_objective_is_refused_with_the_near_one():
    with pytest.raises(PlanError, match=r"the objective is 'latency', .*\n.*'latency_ms'"):
        solve(keeps(1), 1, ResourceLimits(), objective="latency")
    with pytest.raises(PlanError, match="the objective is 'edges'"):
        best(keeps(1), 1, ResourceLimits(), 1, "edges")


@pytest.mark.parametrize("unwanted", [set(), {2}, {-1, 0}])
def test_a_malformed_without_is_refused(unwanted):
    with pytest.raises(PlanError, match=r"`without` is .*, expected one or more indices in 0\.\.1"):
        solve(keeps(2), 2, ResourceLimits(), without=[frozenset(unwanted)])


def test_no_paths_at_all_cannot_be_asked_for():
    with pytest.raises(PlanError, match="k is 0, expected at least 1"):
        best(keeps(1), 1, ResourceLimits(), 0)


def test_edges_and_budgets_are_plain_data():
    one = edge(0, 2, damage=0.5)
    assert Edge.model_validate(json.loads(one.model_dump_json())) == one
    assert ResourceLimits(latency_ms=1, depth=2).limits() == {"latency_ms": 1, "depth": 2}


def test_what_others_print_while_plans_are_sought_arrives(capfd):
    edges, stop, lines = deep_chain(0), threading.Event(), 0

    def prints():
        nonlocal lines
        while not stop.is_set():
            os.write(1, b"a line\n")
            lines += 1
            time.sleep(0.001)

    thread = threading.Thread(target=prints)
    thread.start()
    best(edges, 30, ResourceLimits(latency_ms=349.0), 3)
    stop.set()
    thread.join()
    assert lines > 2
    assert capfd.readouterr().out == "a line\n" * lines


def test_plans_can_be_sought_in_several_threads():
    edges, budget = deep_chain(1), ResourceLimits(latency_ms=349.0)
    alone = best(edges, 30, budget, 3)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: best(edges, 30, budget, 3), range(4))) == [alone] * 4


def test_latencies_at_further_batch_sizes_bound_a_path_too():
    edges = [
        edge(0, 1, "keep", latency_ms=4.0, latencies=(4.0,)),
        edge(0, 1, damage=1.0, latency_ms=1.0, latencies=(3.0,)),  # fast at the first batch size only
        edge(0, 1, damage=2.0, latency_ms=2.0, latencies=(1.0,)),
        edge(0, 1, "remove", damage=9.0),  # takes no time anywhere, and does not say so
    ]

    def chosen(**limits):
        path = solve(edges, 1, ResourceLimits(**limits))
        return path.edges, path.latency_ms, path.latencies

    assert chosen() == ((0,), 4.0, (4.0,))
    assert chosen(latency_ms=2.0) == ((1,), 1.0, (3.0,))
    assert chosen(latency_ms=2.0, latencies=(2.0,)) == ((2,), 2.0, (1.0,))
    assert chosen(latency_ms=0.5, latencies=(0.5,)) == ((3,), 0.0, (0.0,))
    assert solve(keeps(1), 1, ResourceLimits(latency_ms=0.5)) is None
    with pytest.raises(PlanError, match="which no edge has"):
        solve(keeps(1), 1, ResourceLimits(latencies=(0.5,)))
    with pytest.raises(PlanError, match="a latency is"):
        edge(0, 1, latencies=(math.nan,))
