"""Which candidates of a very deep network are fitted and measured; how much work that is, in forwards."""

import pytest
import torch
from torch import nn

from shoal.batches import Batch, first_samples
from shoal.blocks import analyze
from shoal.pipeline import screening
from shoal.pipeline.api import compress
from shoal.pipeline.candidate_damage import DamageMeter
from shoal.pipeline.config import CompressConfig
from shoal.pipeline.effort import Effort
from shoal.pipeline.goals import Blocks, Budget
from shoal.pipeline.screening import least_influence, screen
from shoal.replace import build_segments, find_spans


class Block(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.norm, self.outer = nn.LayerNorm(8), nn.Linear(8, 8)
        self.calls = 0
        with torch.no_grad():
            self.outer.weight.mul_(scale)
            self.outer.bias.mul_(scale)

    def forward(self, x):
        self.calls += 1
        return x + torch.tanh(self.outer(self.norm(x)))


def deep(depth, seed=0):
    """Every third block does next to nothing."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(8, 8), *[Block(0.001 if n % 3 == 0 else 0.3) for n in range(depth)], nn.Linear(8, 4)
    ).eval()


def data(count=3, size=16):
    torch.manual_seed(9)
    return [torch.randn(size, 8) for _ in range(count)]


@pytest.fixture
def small(monkeypatch):
    """Screen chains of more than ten segments."""
    limits = {"UNSCREENED": 10, "MAX_SPANS": 12, "MAX_COVERING": 9, "MAX_REMOVALS": 5, "JUDGE_SAMPLES": 8}
    for name, value in limits.items():
        monkeypatch.setattr(screening, name, value)


def screened(depth, longest=3):
    model = deep(depth)
    graph = analyze(model, Batch((data()[0][:2],)))
    segments = build_segments(graph)
    spans = find_spans(graph, segments, longest)
    return segments, spans, screen(graph, segments, spans, Batch((data()[0],)))


def test_a_short_chain_is_not_screened(small):
    segments, spans, result = screened(10)
    assert result.spans == spans
    assert result.removals == frozenset(segments.paths)
    assert result.note is None
    graph = analyze(deep(10), Batch((data()[0][:2],)))
    assert Effort.for_network(graph, segments, None) == Effort()
    batches = [Batch((x,)) for x in data()]
    assert all(one is other for one, other in zip(first_samples(batches, None), batches, strict=True))


def test_of_a_long_chain_the_least_changes_are_kept_and_spans_that_cover_it(small):
    segments, spans, result = screened(24)
    assert len(result.spans) == 12
    assert result.spans == [span for span in spans if span in result.spans]  # in their order
    # Blocks 0, 3, 6, ... are at 1, 4, 7, ... of the network.
    assert len(result.removals) == 5
    assert all((int(path) - 1) % 3 == 0 for path in result.removals)
    covered = {number for span in result.spans for number in range(span.start, span.stop)}
    assert covered == set(range(24))
    assert result.note is not None
    assert f"of {len(spans)} spans 12 were fitted and measured, of 24 removals 5" in result.note
    graph = analyze(deep(24), Batch((data()[0][:2],)))
    effort = Effort.for_network(graph, segments, None)
    assert effort == Effort(table_samples=8)
    chosen = list(first_samples([Batch((x,)) for x in data()], effort.table_samples))
    assert sum(batch.size for batch in chosen) == 8


def test_what_no_map_of_single_channels_explains_counts():
    graph = analyze(deep(3), Batch((data()[0][:2],)))
    streams = screening._Streams([None] * 2, [None] * 2)
    x = torch.randn(64, 3)
    streams.before[0], streams.behind[0] = x, 2 * x + 5
    streams.before[1], streams.behind[1] = x, x.roll(1, 0)
    assert streams.score(0, 1) == pytest.approx(0, abs=1e-6)
    assert streams.change(0) > 0.5
    assert streams.score(1, 2) > 0.5
    assert graph.chain.removable


@pytest.mark.parametrize("channels_first", [False, True])
def test_images_are_read_by_where_their_channels_are(channels_first):
    """Rows of channels either way: NHWC images of a Swin are not read as if their rows were channels."""

    class Mix(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = nn.Conv2d(5, 5, 1) if channels_first else nn.Linear(5, 5)

        def forward(self, x):
            return x + self.map(x)

    model = nn.Sequential(Mix(), Mix()).eval()
    x = torch.randn(2, 5, 3, 4) if channels_first else torch.randn(2, 3, 4, 5)
    segments = build_segments(analyze(model, Batch((x,))))
    before = screening._Streams.record(model, segments, Batch((x,))).before[0]
    assert torch.equal(before, (x.movedim(1, -1) if channels_first else x).reshape(-1, 5))


def damage_forwards(depth, monkeypatch, **more):
    """How many changes are measured, each a run of a part of the network."""
    measured = []
    before = DamageMeter.alone

    def counted(self, names):
        measured.append(len(names))
        return before(self, names)

    monkeypatch.setattr(DamageMeter, "alone", counted)
    config = CompressConfig(stand_ins=("linear", "identity"), longest=3, fold=False, **more)
    result = compress(deep(depth), data(4), Budget(params=0.6), validation=data(1), config=config)
    return max(measured), result


@pytest.mark.heavy
@pytest.mark.slow
def test_the_number_of_measured_changes_does_not_grow_with_the_depth(small, monkeypatch):
    counts = []
    for depth in (16, 32):
        count, result = damage_forwards(depth, monkeypatch)
        counts.append(count)
        record = result.record
        assert record.reached
        assert sum("is screened" in note for note in record.notes) == 1
        assert sum(block.removal_kl is not None for block in record.blocks) == 5
    assert counts[0] == counts[1] <= 5 + 12 * 2


def test_named_blocks_run_no_more_forwards_in_a_deep_network_than_in_a_shallow_one():
    def runs(depth):
        model = deep(depth)
        first = model[1]
        before = first.calls
        compress(model, data(2), Blocks(("3", "5")), validation=data(1), config=CompressConfig(fold=False))
        return first.calls - before

    assert runs(6) == runs(12)


def test_of_each_length_the_spans_that_turn_the_stream_least_are_kept():
    """Blocks 5 to 10 do nothing: spans of which all but the first lies there come first."""
    model = deep(12)
    with torch.no_grad():
        for number in range(5, 11):
            model[number].outer.weight.zero_()
            model[number].outer.bias.zero_()
    batch = Batch((data()[0],))
    graph = analyze(model, batch.take(2))
    segments = build_segments(graph)
    spans = [span for span in find_spans(graph, segments, 8) if span.stop - span.start > 4]
    kept = least_influence(graph, segments, spans, batch, 2)
    assert [span for span in spans if span in kept] == kept
    lengths = [span.stop - span.start for span in kept]
    assert {length: lengths.count(length) for length in lengths} == dict.fromkeys(range(5, 9), 2)
    still = {span for span in kept if set(span.paths[1:]) <= set(map(str, range(5, 11)))}
    assert {span.paths for span in still if len(span.paths) == 7} == {tuple(map(str, range(4, 11)))}
    assert sum(len(span.paths) == 6 for span in still) == 2
    assert least_influence(graph, segments, [], batch, 2) == []


@pytest.mark.heavy
def test_a_long_chain_is_measured_whole_where_that_is_asked_for(small, monkeypatch):
    _, result = damage_forwards(12, monkeypatch, screening=False)
    assert not any("is screened" in note for note in result.record.notes)
    assert all(block.removal_kl is not None for block in result.record.blocks)
