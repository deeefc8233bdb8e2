"""255 is a pixel without a class among several classes; of masks of 0 and 255 alone it would be the foreground lost."""

import pytest
import torch
from torch import nn

import shoal
from networks_by_task import Segmenter, Trunk, images, made, seeded
from shoal.batches import as_batch
from shoal.errors import DataError
from shoal.tasks import TASKS, OutputRequest, check_metrics, compare_metrics

QUICK = {"latency_seconds": 0.01}
WHITE = r"the masks hold 0 and 255 alone, and 255 means .* no class"


class TwoClasses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk(4, 2)

    def forward(self, x):
        return self.trunk(x)


class Single(TwoClasses):
    def forward(self, x):
        return super().forward(x)[:, :1]


def masks(count=4, white=255):
    return white * torch.randint(0, 2, (count, 12, 12), generator=seeded(3))


FORMS = {
    "integers": lambda mask: mask,
    "uint8": lambda mask: mask.to(torch.uint8),
    "one channel": lambda mask: mask[:, None],
    "floats of one channel": lambda mask: mask[:, None].float(),
}


@pytest.mark.parametrize("network", [TwoClasses, Segmenter, Single])
@pytest.mark.parametrize("form", FORMS)
def test_a_foreground_of_255_is_refused_before_anything_is_measured(network, form):
    model, data = made(network), [(images(4), FORMS[form](masks()))]
    config = shoal.CompressConfig(task="segmentation", **QUICK)
    with pytest.raises(DataError, match=rf"{WHITE}\n.*give it as 1, also in files: `\(masks > 0\)"):
        shoal.compress(model, data, shoal.RemoveBlocks(1), config=config)
    with pytest.raises(DataError, match=WHITE):
        shoal.scan(model, data, config=shoal.ScanConfig(task="segmentation"))


def test_several_outputs_of_classes_are_looked_at_too():
    labels = masks()
    labels[:, 0] = 0
    with pytest.raises(DataError, match=WHITE):  # the labels tell the task, so that `aux` counts as well
        shoal.compress(made(Segmenter), [(images(4), labels)], shoal.RemoveBlocks(1))


def test_all_masks_tell_together_what_255_is():
    """One image without foreground, with a border of 255 around nothing, is no reason to refuse."""
    model, x, labels = made(TwoClasses), images(4), masks(4, 1)
    labels[:2] = masks(2)
    data = [(x[:2], labels[:2]), (x[2:], labels[2:])]
    result = shoal.compress(
        model, data, shoal.RemoveBlocks(1), config=shoal.CompressConfig(task="segmentation", **QUICK)
    )
    counted = labels != 255
    with torch.no_grad():
        hits = (result.model(x).argmax(1) == labels)[counted]
    accuracy = {metric.name: metric for metric in result.record.comparison.metrics}["pixel_accuracy"]
    assert (accuracy.against, accuracy.compressed) == ("labels", pytest.approx(float(hits.double().mean())))


def test_what_is_marked_as_no_class_is_obeyed():
    labels = masks().masked_fill(masks() == 255, -100)
    data = [(images(4), labels)]
    config = shoal.CompressConfig(task="segmentation", **QUICK)
    record = shoal.compress(made(TwoClasses), data, shoal.RemoveBlocks(1), config=config).record
    assert record.comparison.metrics[0].against == "labels"


def test_white_masks_of_test_data_alone_have_no_figure_and_it_says_why():
    model, x = made(TwoClasses), images(4)
    notes = []
    assert compare_metrics(TASKS["segmentation"], model, model, [(x, masks())], notes=notes) == []
    assert len([note for note in notes if "0 and 255 alone" in note and "left out" in note]) == 2
    check_metrics(TASKS["segmentation"], model, as_batch((x, masks())))  # two samples of many may be so


@pytest.mark.parametrize("white", [1, 255])
def test_masks_of_a_single_score_are_no_images(white):
    target = masks(6, white)[:, None].float()
    assert OutputRequest().choose(made(Single), as_batch((images(6), target))).name is None
