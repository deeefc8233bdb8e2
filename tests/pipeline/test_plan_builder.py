import copy

import pytest
import torch
from footing import planner


@pytest.fixture(scope="module")
def one():
    return planner(kinds=("linear", "conv3"), longest=2)


def changed(one):
    """The path that does most damage among those with stand-ins."""
    return max((path for path in one.front if one.builder.stand_ins(path)), key=lambda path: path.damage)


def test_building_leaves_the_original_as_it_was(one):
    before = copy.deepcopy(one.builder.model.state_dict())
    one.builder.build(changed(one))
    assert all(torch.equal(value, before[name]) for name, value in one.builder.model.state_dict().items())


def test_a_path_that_keeps_all_is_the_original_and_does_no_damage(one):
    builder = one.builder
    [whole] = [path for path in one.front if not builder.actions(path)]
    assert builder.damage_of(builder.build(whole)) == 0
    assert builder.best_of(whole).damage == 0


def test_the_best_network_is_no_further_off_than_any_that_was_tried(one):
    builder, path = one.builder, changed(one)
    best = builder.best_of(path)
    assert best.damage == pytest.approx(builder.damage_of(best.network))
    assert best.damage <= builder.damage_of(builder.build(path))
    assert "kept:" in best.said


def test_a_refit_on_a_part_mends(one):
    builder, path = one.builder, changed(one)
    assert builder.damage_of(builder.refitted(path)) < builder.damage_of(builder.build(path))
