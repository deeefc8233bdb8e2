import pytest
import torch

import tiny
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.blocks.prefix_cache import PrefixCache
from shoal.scanning.candidates import kernel_layers, layer_candidates
from shoal.scanning.scorer import split_by_cost


@pytest.fixture(scope="module")
def graph():
    graph = analyze(tiny.network(), Batch((torch.randn(2, 1, 8, 8),)))
    with torch.no_grad():
        PrefixCache(graph).find_restarts(Batch((torch.randn(2, 1, 8, 8),)))
    return graph


@pytest.mark.parametrize("parts", [1, 2, 5, 100])
def test_portions_hold_every_candidate_once_in_the_order_of_the_network(graph, parts):
    candidates = layer_candidates(graph, kernel_layers(graph))
    portions = split_by_cost(graph, candidates, parts)
    assert 1 <= len(portions) <= parts
    assert all(portions)
    order = [layer.path for layer in kernel_layers(graph)]
    assert [candidate.path for portion in portions for candidate in portion] == order


def test_late_candidates_cost_less_so_more_of_them_make_a_portion(graph):
    first, *_, last = split_by_cost(graph, layer_candidates(graph, kernel_layers(graph)), 3)
    assert len(first) < len(last)
