import itertools

import pytest
import torch
from given import made, randn, spans

import networks
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.regress import fit
from shoal.replace import ReplacementSpec, fit_all
from shoal.replace.heldout_moments import HeldOutMoments, HeldOutSamples
from shoal.replace.row_sampler import RowSampler


def which(sizes):
    """The numbers of the samples held out of mini-batches of these sizes, and of the others."""
    parts, held, fitted = HeldOutSamples(), [], []
    for start, size in zip(itertools.accumulate([0, *sizes]), sizes, strict=False):
        numbers = list(range(start, start + size))
        out, rest = parts.split(size)
        held += numbers[out]
        fitted += [number for part in rest for number in numbers[part]]
    return held, fitted


@pytest.mark.parametrize("sizes", [[1] * 40, [2] * 20, [8] * 5, [40], [7, 1, 32], [3, 5] * 5])
def test_a_fifth_of_all_samples_is_held_out_whatever_the_mini_batches(sizes):
    held, fitted = which(sizes)
    assert len(held) == 8
    assert sorted(held + fitted) == list(range(40))
    assert which(sizes) == (held, fitted)


@pytest.mark.parametrize("sizes", [[2], [1, 1], [1, 5], [3]])
def test_of_few_samples_one_is_held_out_and_one_is_not(sizes):
    held, fitted = which(sizes)
    assert held
    assert fitted


def test_an_order_of_sources_that_repeats_puts_each_on_both_sides():
    for size, sources in ((2, 2), (4, 2), (1, 5), (10, 5)):
        held, fitted = which([size] * (200 // size))
        for numbers in (held, fitted):
            assert {number % sources for number in numbers} == set(range(sources))


def test_a_map_is_fitted_to_both_sources_of_mini_batches_in_a_fixed_order():
    first, second = randn(2, 4, 5, seed=1), randn(2, 4, 5, seed=2)
    moments = HeldOutMoments(RowSampler(8, 40, None), 8, 5, "here")
    for seed in range(20):  # one sample of each, and each of features of its own
        x = torch.zeros(2, 30, 8, dtype=torch.float64)
        x[0, :, :4], x[1, :, 4:] = randn(30, 4, seed=seed), randn(30, 4, seed=100 + seed)
        moments.add(x, [torch.cat([x[:1, :, :4] @ first[0], x[1:, :, 4:] @ second[0]])])
    fitted = fit(*moments.given_up())
    torch.testing.assert_close(fitted.weight, torch.cat([first[0], second[0]]).T, rtol=0, atol=1e-3)


def test_mini_batches_of_one_sample_are_fitted_on():
    model = made(lambda: networks.CifarResNet(2, widths=(3, 5, 7)))
    graph = analyze(model, Batch((randn(2, 3, 8, 8),)))
    wanted = [ReplacementSpec(spans(graph)[0, 1], "linear")]
    singles = [Batch((randn(1, 3, 8, 8, seed=seed),)) for seed in range(20)]
    together = [Batch((torch.cat([single.args[0] for single in singles]),))]
    [one], [other] = (fit_all(graph, batches, wanted) for batches in (singles, together))
    assert one.r2_held_out == pytest.approx(other.r2_held_out, abs=0.1)
    unlike = [*singles[:5], *[Batch((randn(1, 3, 10, 6, seed=seed),)) for seed in range(5)]]
    assert fit_all(graph, unlike, wanted)[0].r2_held_out > 0
