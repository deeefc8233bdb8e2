"""Detectors are compared before boxes are selected, and come back with the outputs their users know."""

import pytest
import torch

import shoal
from shoal.errors import NonFiniteError
from shoal.tasks import TASKS, compare_metrics, dense_copy, usual_outputs

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


class Queries(torch.nn.Module):
    """A detector as transformers has them: one box of shares of the image, around the middle."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, pixel_values):
        box = pixel_values.new_tensor([0.5, 0.5, 0.5, 0.25]).expand(len(pixel_values), 1, 4)
        return {"logits": pixel_values.new_tensor([-5.0, 5.0]).expand(len(box), 1, 2) + self.weight, "pred_boxes": box}


@pytest.mark.parametrize(
    "annotation",
    [
        {"boxes": torch.tensor([[0.5, 0.5, 0.5, 0.25]]), "class_labels": torch.tensor([1])},
        {"boxes": torch.tensor([[16.0, 12.0, 48.0, 20.0]]), "labels": torch.tensor([1])},
    ],
    ids=["in shares", "in pixels"],
)
def test_boxes_in_shares_are_compared_with_either_kind_of_annotation(annotation):
    """`coco:ROOT` has corners in pixels; a right answer was worth nothing there."""
    pytest.importorskip("pycocotools", reason="pip install 'shoal[tasks]'")
    data = [(torch.rand(2, 3, 32, 64), [annotation] * 2)]
    [precision] = compare_metrics(TASKS["detection"], Queries(), Queries(), data)
    assert (precision.against, precision.original, precision.n) == ("labels", pytest.approx(1.0), 2)


def test_what_is_found_in_a_crowd_is_no_mistake():
    pytest.importorskip("pycocotools", reason="pip install 'shoal[tasks]'")
    truth = {
        "boxes": torch.tensor([[16.0, 12.0, 48.0, 20.0], [0.0, 0.0, 64.0, 32.0]]),
        "labels": torch.tensor([1, 1]),
        "iscrowd": torch.tensor([0, 1]),
    }
    alone = {key: value[1:] for key, value in truth.items()}
    data = [(torch.rand(3, 3, 32, 64), [truth, alone, alone])]
    [precision] = compare_metrics(TASKS["detection"], Queries(), Queries(), data)
    assert precision.original == pytest.approx(1.0)
    with pytest.raises(NonFiniteError):  # nobody counts in a crowd: there is nothing to find
        compare_metrics(TASKS["detection"], Queries(), Queries(), [(torch.rand(2, 3, 32, 64), [alone, alone])])
