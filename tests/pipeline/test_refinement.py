"""What stays after a removal is refitted where that does less damage, and a plan likewise."""

import pytest
import torch

import halves
import language
import networks
import shoal
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.errors import DataError, UsageError
from shoal.pipeline import api, context, refinement
from shoal.pipeline.refinement import HeldBackDamage, Refinement

REFIT = shoal.CompressConfig(refit=True, latency_seconds=0.001)
PLAIN = shoal.CompressConfig(latency_seconds=0.001)


def images(n=12, seed=0):
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


DATA = [images(seed=seed) for seed in range(5)]
OTHER = [images(seed=seed) for seed in range(8, 12)]


def network():
    torch.manual_seed(0)
    return networks.randomised(networks.PreactNet(6, 4))


def cut(goal, config, **more):
    return shoal.compress(network(), DATA, goal, validation=OTHER[:2], test=OTHER[2:], config=config, **more)


def same_weights(first, second):
    ours, theirs = first.state_dict(), second.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("goal", [shoal.Blocks(("blocks.0", "blocks.2")), shoal.RemoveBlocks(1)])
def test_what_stays_makes_up_for_what_went(goal):
    without, refitted = cut(goal, PLAIN), cut(goal, REFIT)
    assert refitted.plan.actions == without.plan.actions
    assert refitted.record.comparison.kl < 0.9 * without.record.comparison.kl
    assert any("kept: kept blocks refitted too" in note for note in refitted.record.notes)
    assert not any("held-back" in note for note in without.record.notes)
    assert refitted.record.reached
    if without.record.validation is not None:  # which is of the network as it is in the end
        assert refitted.record.validation.kl < without.record.validation.kl


def test_single_units_are_made_up_for_as_well():
    goal, data = shoal.Blocks(("blocks.1#0",)), [halves.samples(12, seed=seed) for seed in range(7)]

    def removed(config):
        torch.manual_seed(0)
        return shoal.compress(
            halves.Halves().eval(), data[:5], goal, validation=data[5:6], test=data[6:], config=config
        )

    without, refitted = removed(PLAIN), removed(REFIT)
    assert refitted.plan.actions == without.plan.actions
    assert refitted.record.comparison.kl < 0.9 * without.record.comparison.kl


def test_a_refit_that_does_harm_is_not_kept(monkeypatch):
    def spoil(teacher, student, *args, **kwargs):
        for weight in student.parameters():
            weight.data = 3 * weight.data
        return student

    monkeypatch.setattr(refinement, "refit_", spoil)
    goal = shoal.Blocks(("blocks.1",))
    result = cut(goal, REFIT)
    assert same_weights(result.model, cut(goal, PLAIN).model)
    assert any(note.endswith("kept: built") for note in result.record.notes)


def test_a_refit_that_leaves_the_drop_that_is_allowed_is_not_kept(monkeypatch):
    monkeypatch.setattr(api, "metric_drop", lambda comparison: 1.0)
    goal = shoal.MaxDrop(5.0)
    labelled = [(batch, network()(batch).argmax(1)) for batch in OTHER]
    arguments = {"validation": labelled[:2], "test": labelled[2:]}
    with_labels = [(batch, network()(batch).argmax(1)) for batch in DATA]
    without, result = (
        shoal.compress(network(), with_labels, goal, **arguments, config=config) for config in (PLAIN, REFIT)
    )
    assert result.record.reached
    assert result.record.message == without.record.message
    if result.plan.actions:
        assert same_weights(result.model, without.model)
        assert any("the drop would be larger than allowed" in note for note in result.record.notes)


def test_too_few_samples_to_hold_any_back_are_refused_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(api, "GreedyRemoval", lambda *args: pytest.fail("it began"))
    with pytest.raises(DataError, match="2 calibration samples, expected at least 3"):
        shoal.compress(network(), [images(2)], shoal.Blocks(("blocks.1",)), config=REFIT)


def test_mini_batches_of_one_sample_are_refitted_on_as_well(monkeypatch):
    singles, goal = [batch[:1] for batch in DATA * 2], shoal.Blocks(("blocks.1",))
    result = shoal.compress(network(), singles, goal, validation=OTHER[:2], test=OTHER[2:], config=REFIT)
    assert any("kept blocks refitted too" in note for note in result.record.notes)
    monkeypatch.setattr(api, "GreedyRemoval", lambda *args: pytest.fail("it began"))
    with pytest.raises(DataError, match="a single calibration sample is left to refit on"):
        shoal.compress(network(), singles[:1], goal, validation=OTHER[:2], config=REFIT)


@pytest.mark.parametrize("goal", [shoal.Budget(macs=0.7), shoal.ExactOnly(), shoal.ParetoPoint(1)])
def test_a_goal_without_removals_has_nothing_to_refit(monkeypatch, goal):
    monkeypatch.setattr(context, "analyze", lambda *args: pytest.fail("it began"))
    with pytest.raises(UsageError, match=r"refit does nothing with .*a plan is refitted anyway"):
        cut(goal, REFIT)


def test_what_is_no_flag_is_refused():
    with pytest.raises(UsageError, match="refit"):
        shoal.CompressConfig(refit="yes")


def test_nothing_is_refitted_where_nothing_was_changed():
    model = network()
    batches = [Batch((batch,)) for batch in DATA]
    graph = analyze(model.eval(), batches[0].take(2))
    refined = Refinement(graph, batches, HeldBackDamage(graph, batches)).best(lambda: network().eval(), [], [])
    assert set(refined.damages) == {"built", "norms recalibrated"}
    assert refined.damages["built"] == 0
    assert not refined.is_changed


def test_without_batch_norms_nothing_is_recalibrated():
    model = language.llama(2)
    batches = [Batch((), {"input_ids": language.tokens(2, 6), "use_cache": False})]
    graph = analyze(model, batches[0])
    refined = Refinement(graph, batches, HeldBackDamage(graph, batches)).best(lambda: model, [], [])
    assert set(refined.damages) == {"built"}


def test_the_original_answers_once_where_its_answers_fit_into_memory():
    model, other = network().eval(), network().eval()
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    batches = [Batch((batch,)) for batch in DATA]
    graph = analyze(model, batches[0].take(2))
    size = 4 * model(*batches[0].args).numel()
    damages, calls = {}, {}
    for kept in (0, 1, len(batches)):
        judge, runs = HeldBackDamage(graph, batches, memory=kept * size), []
        handle = model.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        damages[kept] = [judge.damage_of(other) for _ in range(2)]
        handle.remove()
        calls[kept] = len(runs)
    assert damages[0] == damages[1] == damages[len(batches)]
    assert damages[0][0] > 0
    assert calls == {0: 2 * len(batches), 1: 2 * len(batches) - 1, len(batches): len(batches)}
