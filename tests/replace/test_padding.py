"""What closed-form fits make of padding: nothing. Garbage at its positions changes no weight."""

import pytest
import torch

import language
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.replace import ReplacementSpec, build_segments, find_spans, fit_all, fit_folded, folded_specs, refit_
from shoal.surgery import remove_blocks


def padded(token):
    """Twelve texts of uneven length, filled up on the left with a token that is masked."""
    ids, mask = language.tokens(12, 16), torch.ones(12, 16, dtype=torch.long)
    for row in range(12):
        ids[row, : row % 6], mask[row, : row % 6] = token, 0
    kwargs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    halves = (slice(0, 6), slice(6, 12))
    return [
        Batch(kwargs={name: value[half] for name, value in kwargs.items()} | {"use_cache": False}) for half in halves
    ]


REMOVED = ["model.layers.2"]


def refitted(batches):
    model = language.llama(5)
    graph = analyze(model, batches[0].take(2))
    cut = remove_blocks(model, batches[0].take(2), REMOVED).eval()
    refit_(graph, cut, [], batches, removed=REMOVED)
    return cut.state_dict(), model.state_dict()


def test_padding_has_no_part_in_refits():
    (first, whole), (second, _) = (refitted(padded(token)) for token in (5, 90))
    assert any(not torch.equal(value, whole[name]) for name, value in first.items() if name in whole)
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-5)


def fitted(kind, batches):
    graph = analyze(language.llama(5), batches[0].take(2))
    spans = find_spans(graph, chain := build_segments(graph), 2)
    if kind == "folded":
        return fit_folded(graph, batches, folded_specs(graph, chain, spans))
    return fit_all(graph, batches, [ReplacementSpec(span, kind) for span in spans])


@pytest.mark.parametrize("kind", ["folded", "linear"])
def test_padding_has_no_part_in_what_stands_in_for_blocks(kind):
    fits = [fitted(kind, padded(token)) for token in (5, 90)]
    assert fits[0]
    for first, second in zip(*fits, strict=True):
        for name, value in first.module.state_dict().items():
            torch.testing.assert_close(value, second.module.state_dict()[name], rtol=1e-4, atol=1e-5)
