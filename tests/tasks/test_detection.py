"""Detectors are compared before boxes are selected, and come back with the outputs their users know."""

import pytest
import torch

import shoal
from shoal.tasks import TASKS, dense_copy, usual_outputs

pytest.importorskip("torchvision", reason="pip install 'shoal[vision]'")
from detectors import detector

QUICK = {"latency_seconds": 0.01}


def data():
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[4.0, 4.0, 40.0, 40.0]])
    return [([*images], [{"boxes": boxes, "labels": torch.tensor([1])} for _ in images])]


@pytest.mark.parametrize("kind", ["one stage", "two stages"])
def test_detectors_go_through_whole(kind):
    pytest.importorskip("pycocotools", reason="pip install 'shoal[tasks]'")
    model = detector(kind)
    scanned = shoal.scan(model, data(), config=shoal.ScanConfig(layers=False))
    assert scanned.outputs.task == "detection"
    assert len(scanned.blocks) == 3
    assert all(block.ablations["block"].kl > 0 for block in scanned.blocks)
    result = shoal.compress(model, data(), shoal.RemoveBlocks(1), config=shoal.CompressConfig(**QUICK))
    assert type(result.model) is type(model)
    found = result.model(data()[0][0])
    assert isinstance(found, list)
    assert {"boxes", "labels", "scores"} <= found[0].keys()
    [precision] = result.record.comparison.metrics
    assert (precision.label, precision.against, precision.n) == ("mAP", "labels", 3)
    assert isinstance(model(data()[0][0]), list)


@pytest.mark.parametrize("kind", ["one stage", "two stages"])
def test_every_part_that_boxes_come_from_is_looked_at(kind):
    """A change of any weight that reaches the detector's answer moves a dense output."""
    model = detector(kind)
    images = torch.rand(1, 3, 64, 64)
    dense = dense_copy(TASKS["detection"], model)
    with torch.no_grad():
        before = dense(images)
    for name, parameter in dense.named_parameters():
        with torch.no_grad():
            kept = parameter.clone()
            parameter.mul_(1.5).add_(0.1)
            after = dense(images)
            parameter.copy_(kept)
        assert any(not torch.equal(before[key], after[key]) for key in before), name


def test_usual_outputs_come_back_also_after_an_error():
    dense = dense_copy(TASKS["detection"], detector("one stage"))
    images = torch.rand(1, 3, 64, 64)
    with usual_outputs(dense):
        assert isinstance(dense(images), list)
    assert isinstance(dense(images), dict)
    with pytest.raises(TypeError), usual_outputs(dense):
        dense(None)
    assert isinstance(dense(images), dict)


def test_boxes_right_on_truth_have_a_precision_of_one():
    pytest.importorskip("pycocotools", reason="pip install 'shoal[tasks]'")
    [metric] = TASKS["detection"].metrics
    truth = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    found = truth | {"scores": torch.tensor([0.9])}
    assert metric.value([(found, truth)]) == pytest.approx(1.0)
    missed = {"boxes": torch.tensor([[50.0, 50.0, 60.0, 60.0]]), "labels": torch.tensor([1])}
    assert metric.value([(missed | {"scores": torch.tensor([0.9])}, truth)]) == 0.0
