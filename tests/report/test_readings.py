import math

import pytest
from scanned import ablation, layer, make_scan, scanned_blocks, unmeasured

from shoal.report import readings


def test_taking_a_block_out_speaks_for_it() -> None:
    block = scanned_blocks()[0]
    assert readings.main(block) == block.ablations["block"]
    both = block.model_copy(update={"ablations": {"branch": ablation(0.5, 1.0), "block": ablation(0.2, 0.3)}})
    assert readings.main(both).top1_drop == 0.2
    without = block.model_copy(update={"ablations": {"mean": block.ablations["mean"], "branch": ablation(0.5, 1.0)}})
    assert readings.main(without).top1_drop == 0.5
    assert readings.main(block.model_copy(update={"ablations": {}})) is None
    assert readings.main(layer("head", None, 3, 3)).kl == 0.06


def test_a_branch_that_is_the_same_run_is_left_out() -> None:
    block = scanned_blocks()[0]
    assert list(readings.distinct(block)) == ["block", "mean"]
    other = block.model_copy(update={"ablations": {**block.ablations, "branch": ablation(0.5, 1.0)}})
    assert list(readings.distinct(other)) == ["block", "mean", "branch"]


def test_a_drop_is_in_points_and_a_loss_in_nats() -> None:
    one = ablation(0.1, 0.3)
    drop = readings.change(one, "top1")
    assert (drop.value, drop.low, drop.high) == pytest.approx((10.0, 8.1, 11.9))
    loss = readings.change(one, "loss")
    assert (loss.value, loss.low, loss.high) == pytest.approx((0.3, 0.21, 0.42))
    assert readings.amount(one, "top1") == ("10.00", "8.10 to 11.90")
    assert readings.amount(one, "kl") == ("0.300", "0.21 – 0.42")


def test_an_unknown_end_is_no_end() -> None:
    one = ablation(0.1, 0.3, loss_increase_interval=(math.nan, math.nan), top1_drop_interval=None)
    for metric in ("top1", "loss"):
        change = readings.change(one, metric)
        assert (change.low, change.high) == (-math.inf, math.inf)
    assert readings.change(ablation(math.nan, 0.0), "top1") is None


def test_tolerance_is_in_the_unit_of_the_measure() -> None:
    assert readings.tolerance(make_scan()) == 1.0
    assert readings.tolerance(make_scan(metric="kl")) == 0.01


def test_counts_know_what_was_not_measured() -> None:
    found = readings.counts(unmeasured().blocks)
    assert found[None] == 1
    assert sum(found.values()) == 27


def test_the_most_important_block_comes_first_and_what_is_no_number_nowhere() -> None:
    ranked = readings.ranked(unmeasured().blocks)
    assert ranked[0].path == "stages.2.0"
    assert len(ranked) == 25
    worths = [readings.main(block).kl for block in ranked]
    assert worths == sorted(worths, reverse=True)
