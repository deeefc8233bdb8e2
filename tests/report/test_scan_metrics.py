import math

import pytest
from scanned import ablation, layer, make_scan, scanned_blocks, unmeasured

from shoal.report import scan_metrics


def test_taking_a_block_out_speaks_for_it() -> None:
    block = scanned_blocks()[0]
    assert scan_metrics.main(block) == block.ablations["block"]
    both = block.model_copy(update={"ablations": {"branch": ablation(0.5, 1.0), "block": ablation(0.2, 0.3)}})
    assert scan_metrics.main(both).top1_drop == 0.2
    without = block.model_copy(update={"ablations": {"mean": block.ablations["mean"], "branch": ablation(0.5, 1.0)}})
    assert scan_metrics.main(without).top1_drop == 0.5
    assert scan_metrics.main(block.model_copy(update={"ablations": {}})) is None
    assert scan_metrics.main(layer("head", None, 3, 3)).kl == 0.06


def test_a_branch_that_is_the_same_run_is_left_out() -> None:
    block = scanned_blocks()[0]
    assert list(scan_metrics.distinct(block)) == ["block", "mean"]
    other = block.model_copy(update={"ablations": {**block.ablations, "branch": ablation(0.5, 1.0)}})
    assert list(scan_metrics.distinct(other)) == ["block", "mean", "branch"]


def test_a_drop_is_in_points_and_a_loss_in_nats() -> None:
    one = ablation(0.1, 0.3)
    drop = scan_metrics.change(one, "top1")
    assert (drop.value, drop.low, drop.high) == pytest.approx((10.0, 8.1, 11.9))
    loss = scan_metrics.change(one, "loss")
    assert (loss.value, loss.low, loss.high) == pytest.approx((0.3, 0.21, 0.42))
    assert scan_metrics.amount(one, "top1") == ("10.00", "8.10 to 11.90")
    assert scan_metrics.amount(one, "kl") == ("0.300", "0.21 – 0.42")


def test_an_unknown_end_is_no_end() -> None:
    one = ablation(0.1, 0.3, loss_increase_interval=(math.nan, math.nan), top1_drop_interval=None)
    for metric in ("top1", "loss"):
        change = scan_metrics.change(one, metric)
        assert (change.low, change.high) == (-math.inf, math.inf)
    assert scan_metrics.change(ablation(math.nan, 0.0), "top1") is None


def test_tolerance_is_in_the_unit_of_the_measure() -> None:
    assert scan_metrics.margin(make_scan()) == 1.0
    assert scan_metrics.margin(make_scan(metric="kl")) == 0.01


def test_counts_know_what_was_not_measured() -> None:
    found = scan_metrics.counts(unmeasured().blocks)
    assert found[None] == 1
    assert sum(found.values()) == 27


def test_the_most_important_block_comes_first_and_what_is_no_number_nowhere() -> None:
    ranked = scan_metrics.ranked(unmeasured().blocks)
    assert ranked[0].path == "stages.2.0"
    assert len(ranked) == 25
    worths = [scan_metrics.main(block).kl for block in ranked]
    assert worths == sorted(worths, reverse=True)
