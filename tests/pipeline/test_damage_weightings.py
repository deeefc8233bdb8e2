from shoal.pipeline.damage_weightings import concave_damage, discounted_removals
from shoal.plan import Edge, ResourceLimits, solve


def edge(start, stop, action, damage, latency=1.0):
    return Edge(start=start, stop=stop, action=action, damage=damage, latency_ms=latency, macs=1.0, params=1.0, depth=1)


def test_removal_is_favoured_and_nothing_else():
    edges = [edge(0, 1, action, 2.0) for action in ("keep", "remove", "replace")]
    assert [one.damage for one in discounted_removals(edges, 0.25)] == [2.0, 0.5, 2.0]


def test_bent_damages_prefer_one_large_change_to_many_small_ones():
    edges = [edge(0, 2, "replace", 1.0), edge(0, 1, "replace", 0.4), edge(1, 2, "replace", 0.4)]
    assert solve(edges, 2, ResourceLimits()).edges == (1, 2)
    assert solve(concave_damage(edges, 0.5), 2, ResourceLimits()).edges == (0,)
    assert [one.damage for one in edges] == [1.0, 0.4, 0.4]


def test_what_does_no_damage_still_does_none():
    assert concave_damage([edge(0, 1, "keep", 0.0)], 0.5)[0].damage == 0.0
