"""How much is spent on telling plans apart: by samples for most networks, by tokens for language models."""

import pytest
import torch

import language
import networks
from shoal.batches import Batch, first_samples
from shoal.blocks import analyze
from shoal.measure import reading_of
from shoal.pipeline.effort import Effort, outputs_per_sample
from shoal.replace import build_segments


def language_model(length):
    data = [Batch((), {"input_ids": language.tokens(2, length), "use_cache": False})]
    graph = analyze(language.llama(2), data[0])
    return graph, reading_of(graph.model, data)


@pytest.mark.parametrize(("length", "table", "plan"), [(12, 42, 341), (60, 8, 68)])
def test_tokens_count_where_each_has_scores_of_its_own(length, table, plan):
    graph, reading = language_model(length)
    assert outputs_per_sample(graph, reading) == length
    effort = Effort.for_network(graph, build_segments(graph), reading)
    assert effort == Effort(table, plan, plan, quick_refits=4, reach=2)


def test_however_long_the_rows_some_are_measured(monkeypatch):
    monkeypatch.setattr("shoal.pipeline.effort._TABLE_OUTPUTS", 20)
    graph, reading = language_model(12)
    assert Effort.for_network(graph, build_segments(graph), reading).table_samples == 4


def test_images_are_counted_one_by_one():
    data = [Batch((torch.randn(4, 3, 8, 8),), target=torch.tensor([0, 1, 2, 3]))]
    graph = analyze(networks.randomised(networks.CifarResNet(1, widths=(4, 4, 4))), data[0].take(2))
    assert Effort.for_network(graph, build_segments(graph), reading_of(graph.model, data)) == Effort()


def test_the_first_samples_of_mini_batches():
    batches = [Batch((torch.arange(start, start + 3.0)[:, None],)) for start in (0, 3, 6)]
    chosen = list(first_samples(batches, 4))
    assert [batch.args[0].flatten().tolist() for batch in chosen] == [[0, 1, 2], [3]]
