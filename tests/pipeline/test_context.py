"""Samples and settings: what is taken, what is refused before anything is measured."""

import pytest
import torch
from footing import batches, network

from shoal.errors import DataError, SurgeryError, UsageError
from shoal.pipeline.context import MeasureConfig, build_context, materialize
from shoal.pipeline.goals import RemoveBlocks
from shoal.scanning import divergence

CPU = torch.device("cpu")


def told(model):
    chosen_on, _ = materialize(batches(8, 3, 8, 8), None, MeasureConfig(images=6), CPU)
    return build_context(
        model, chosen_on, None, RemoveBlocks(1), MeasureConfig(), divergence, lambda stage, done, total: None
    )


def test_samples_are_capped_and_kept():
    chosen_on, judged_on = materialize(
        batches(8, 3, 8, 8, count=3), batches(8, 3, 8, 8), MeasureConfig(images=13, validation_images=5), CPU
    )
    assert [one.size for one in chosen_on] == [8, 5]
    assert [one.size for one in judged_on] == [5]
    assert materialize(batches(8, 3, 8, 8), None, MeasureConfig(), CPU)[1] is None


def test_no_samples():
    with pytest.raises(DataError, match="the calibration data is empty"):
        materialize([], None, MeasureConfig(), CPU)
    with pytest.raises(DataError, match="the validation data is empty"):
        materialize(batches(8, 3, 8, 8), [], MeasureConfig(), CPU)


def test_the_original_is_copied_and_the_copy_is_in_eval_mode():
    model = network().train()
    found = told(model)
    assert found.model is model
    assert model.training
    assert not found.graph.model.training
    found.graph.model.linear.weight.data.zero_()
    assert float(model.linear.weight.detach().abs().max()) > 0


def test_a_network_that_cannot_be_copied():
    model = network()
    model.handle = (one for one in [])  # a generator has no copy
    with pytest.raises(SurgeryError, match="CifarResNet cannot be copied"):
        told(model)


@pytest.mark.parametrize("name", ["images", "judge_images", "longest", "validation_images", "latency_seconds"])
def test_nothing_of_something_is_refused(name):
    low = "more than 0" if name == "latency_seconds" else "at least 1"
    with pytest.raises(UsageError, match=f"{name} is 0, expected {low}"):
        MeasureConfig(**{name: 0})


@pytest.mark.parametrize(
    ("sizes", "expected"), [((), ()), ([1, 128], (128, 1)), ((8, 1, 8), (8, 1)), (range(1, 3), (2, 1))]
)
def test_batch_sizes_count_once_the_largest_first(sizes, expected):
    assert MeasureConfig(latency_batch_sizes=sizes).latency_batch_sizes == expected


@pytest.mark.parametrize("sizes", [(0,), (1, -2), (1.5,), ("1", "128"), "1,128", 128, (True,), (None,)])
def test_batch_sizes_that_are_none_are_refused(sizes):
    with pytest.raises(UsageError, match="latency_batch_sizes"):
        MeasureConfig(latency_batch_sizes=sizes)


@pytest.mark.parametrize(("by_plan", "images", "expected"), [(True, None, 2048), (False, None, 512), (True, 40, 40)])
def test_a_plan_is_made_on_more_samples_than_a_removal(by_plan, images, expected):
    loader = (torch.zeros(256, 1) for _ in range(20))
    samples, _ = materialize(loader, None, MeasureConfig(images=images), CPU, by_plan=by_plan)
    assert sum(batch.size for batch in samples) == expected
