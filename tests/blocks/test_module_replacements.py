import pytest
import torch
from torch import nn

import halves
import networks
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.blocks.module_replacements import module_replacements, normalize_removals
from shoal.plan import Remove


@pytest.fixture
def graph():
    return analyze(halves.Halves().eval(), Batch((halves.samples(),)))


def test_a_block_gives_way_to_its_remainder_and_a_unit_to_nothing(graph):
    swaps = module_replacements(graph, [Remove(path="blocks.2"), Remove(path="blocks.0", unit=0)])
    assert set(swaps) == {"blocks.2", "blocks.0.norm1", "blocks.0.mixer"}
    assert isinstance(swaps["blocks.2"], nn.Identity)


def test_units_of_one_block_go_together(graph):
    both = module_replacements(graph, [Remove(path="blocks.0", unit=1), Remove(path="blocks.0", unit=0)])
    assert len(both) == 6
    assert both == graph.unit_stub_cache["blocks.0", frozenset([0, 1])]


def test_the_norms_go_where_that_is_asked():
    torch.manual_seed(0)
    graph = analyze(networks.PostNormNet().eval(), Batch((torch.randn(3, 5, 8),)))
    kept = module_replacements(graph, [Remove(path="encoder.layers.1")])["encoder.layers.1"]
    without_norms = module_replacements(graph, [Remove(path="encoder.layers.1", norms="drop")])["encoder.layers.1"]
    assert len(list(kept.parameters())) == 4
    assert not list(without_norms.parameters())


def test_a_block_without_units_left_goes_whole(graph):
    halfway = [Remove(path="blocks.2", unit=1), Remove(path="blocks.0", unit=1)]
    assert [one.name for one in normalize_removals(graph, halfway)] == ["blocks.0#1", "blocks.2#1"]
    more = [*halfway, Remove(path="blocks.2", unit=0), Remove(path="blocks.1")]
    assert [one.name for one in normalize_removals(graph, more)] == ["blocks.0#1", "blocks.1", "blocks.2"]


def test_units_of_a_block_that_cannot_go_whole_stay_units():
    torch.manual_seed(0)
    graph = analyze(networks.PostNormNet().eval(), Batch((torch.randn(3, 5, 8),)))
    assert not graph.chain["encoder.layers.0"].removable
    both = [Remove(path="encoder.layers.0", unit=number) for number in (1, 0)]
    assert [one.name for one in normalize_removals(graph, both)] == ["encoder.layers.0#0", "encoder.layers.0#1"]
