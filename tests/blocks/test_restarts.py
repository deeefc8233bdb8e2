"""Worths equal whole forwards, however blocks hand values on beside their outputs."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import shoal
import side_channels
from shoal.batches import Batch, as_batch, call
from shoal.blocks import analyze, prefix_cache
from shoal.blocks.prefix_cache import PrefixCache, has_no_hidden_reads, restart_notes, same_tensors
from shoal.preserve import evaluating, patched
from shoal.scanning.batched_candidates import stacking_agrees
from shoal.scanning.candidates import block_candidates, kernel_layers, layer_candidates
from shoal.scanning.sweep import outputs_of

MINI_BATCHES = 2


class Whole(PrefixCache):
    """Runs everything, each time."""

    def record(self, batch):
        self.batch = batch

    def run(self, path, forwards):
        with patched({**self.base, **forwards}):
            return call(self.model, self.batch)


def compared(net, data, stack=1):
    graph = analyze(net, as_batch(data[0][:2]))
    tried = [*block_candidates(graph, {}), *layer_candidates(graph, kernel_layers(graph))]
    prefix, brute = PrefixCache(graph), Whole(graph)
    with evaluating(net):
        prefix.record(Batch((data[0],)))
        paths = [candidate.path for candidate in tried if candidate.ablation == "block"]
        if stack > 1 and not stacking_agrees(graph, {}, Batch((data[0],)), paths, stack):
            stack = 1
        for x in data:
            prefix.record(Batch((x,)))
            outputs = {candidate.key: output.clone() for candidate, output in outputs_of(graph, prefix, tried, stack)}
            brute.record(Batch((x,)))
            for candidate in tried:
                yield candidate.key, outputs[candidate.key], candidate.run(brute)


def routes_of(count, channels=side_channels.CHANNELS):
    pairs = [(writer, reader) for writer in range(count) for reader in range(writer + 1, count)]
    return st.lists(st.tuples(st.sampled_from(channels), st.sampled_from(pairs)), max_size=3)


@settings(max_examples=40, deadline=None)
@given(routes=routes_of(5), seed=st.integers(0, 1000))
def test_worths_equal_whole_forwards(routes, seed):
    net = side_channels.Net(5, [(channel, *pair) for channel, pair in routes], seed=seed).eval()
    for key, output, whole in compared(net, [torch.randn(3, 4) for _ in range(MINI_BATCHES)]):
        assert torch.equal(output, whole), key


@settings(max_examples=30, deadline=None)
@given(routes=routes_of(6), places=st.integers(1, 5), seed=st.integers(0, 1000))
def test_worths_equal_whole_forwards_where_a_network_is_run_from_a_few_places_only(routes, places, seed):
    net = side_channels.Net(6, [(channel, *pair) for channel, pair in routes], seed=seed).eval()
    with mock.patch.object(prefix_cache, "MAX_PLACES", places):
        for key, output, whole in compared(net, [torch.randn(3, 4) for _ in range(MINI_BATCHES)]):
            assert torch.equal(output, whole), key


@settings(max_examples=20, deadline=None)
@given(routes=routes_of(5, side_channels.CHANNELS[2:]), size=st.integers(1, 3))
def test_stacked_worths_equal_whole_forwards(routes, size):
    net = side_channels.Net(5, [(channel, *pair) for channel, pair in routes], alone=True).eval()
    for key, output, whole in compared(net, [torch.randn(size, 4) for _ in range(MINI_BATCHES)], stack=3):
        assert torch.allclose(output, whole, atol=1e-5), key


class Batchwise(side_channels.Net):
    """Its answers depend on who else is in the batch."""

    def forward(self, x):
        x = super().forward(x)
        return x - x.mean(0) / 2 + len(x)


def test_what_depends_on_the_batch_is_not_stacked():
    net = Batchwise(4, [], alone=True).eval()
    for key, output, whole in compared(net, [torch.randn(3, 4)], stack=3):
        assert torch.allclose(output, whole, atol=1e-5), key


@pytest.mark.parametrize("channel", side_channels.CHANNELS)
def test_each_channel(channel):
    net = side_channels.Net(5, [(channel, 1, 3)]).eval()
    for key, output, whole in compared(net, [torch.randn(3, 4) for _ in range(MINI_BATCHES)]):
        assert torch.equal(output, whole), key


@pytest.mark.parametrize("channel", side_channels.CHANNELS)
def test_runs_start_in_front_of_the_writer_and_no_earlier(channel):
    net, x = side_channels.Net(6, [(channel, 1, 3)]).eval(), torch.randn(4, 4)
    graph = analyze(net, as_batch(x[:2]))
    prefix = PrefixCache(graph)
    with evaluating(net):
        prefix.record(Batch((x,)))
    moved = {path: start for path, start in prefix.restarts.items() if path != start}
    assert moved == {"blocks.2": "blocks.1", "blocks.3": "blocks.1"}
    (note,) = restart_notes(graph)
    assert "any of 2 of its 8 parts" in note


def test_without_side_channels_every_segment_is_a_start():
    net, x = side_channels.Net(4, []).eval(), torch.randn(4, 4)
    graph = analyze(net, as_batch(x[:2]))
    prefix = PrefixCache(graph)
    with evaluating(net):
        prefix.record(Batch((x,)))
    assert restart_notes(graph) == []
    assert len(prefix.restarts) == 6
    assert all(has_no_hidden_reads(graph.trace, prefix.segments))


def test_tensors_are_compared_one_by_one():
    a = [torch.ones(2), torch.tensor(float("nan"))]
    assert same_tensors(a, [torch.ones(2), torch.tensor(float("nan"))])
    assert not same_tensors(a, [torch.ones(2)])
    assert not same_tensors(a, [torch.ones(2, 1), torch.tensor(float("nan"))])
    assert not same_tensors([torch.ones(2)], [torch.ones(2) + 1e-6])
    assert same_tensors([torch.ones(2)], [torch.ones(2) + 1e-6], exact=False)
    assert not same_tensors([torch.ones(2)], [torch.ones(2) + 1e-2], exact=False)


def test_records_say_it():
    net = side_channels.Net(4, [("outside", 0, 2)], alone=True).eval()
    data = [(torch.randn(8, 4), torch.arange(8) % 3)]
    assert any("hand values on beside" in note for note in shoal.scan(net, data).notes)
    result = shoal.compress(net, data, shoal.RemoveBlocks(1), config=shoal.CompressConfig(latency_seconds=0.01)).record
    assert any("hand values on beside" in said for said in result.warnings)
